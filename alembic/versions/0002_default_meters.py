"""The two meters that a fresh database has: API requests and LLM tokens, as Kong reports them.

Their dimensions are those of Konnect's meters and a few of ours; what an event lacks is "". They are
ordinary meters: whoever deletes one will not get it back at the next start.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

REQUEST_DIMENSIONS = """
    api_id api_product_id api_product_version_id application_id client_ip control_plane_id portal_id
    request_host request_method request_uri request_user_agent response_http_status route_id route_name
    service_id service_name service_port service_protocol upstream_status
    consumer_id consumer_username consumer_group workspace gateway source billable
""".split()

TOKEN_DIMENSIONS = """
    type provider model cache_status route_id route_name service_id service_name control_plane_id
    ai_plugin_id ai_plugin_name consumer_id consumer_username http_status gateway estimated billable
""".split()

METERS = sa.table(
    "meters",
    sa.column("id", sa.CHAR(26)),
    sa.column("slug", sa.Text),
    sa.column("name", sa.Text),
    sa.column("description", sa.Text),
    sa.column("aggregation", sa.Text),
    sa.column("event_type", sa.Text),
    sa.column("value_property", sa.Text),
    sa.column("group_by", postgresql.JSONB),
    sa.column("created_at", sa.DateTime(timezone=True)),
    sa.column("updated_at", sa.DateTime(timezone=True)),
)


def upgrade() -> None:
    now = sa.func.transaction_timestamp()
    rows = [
        {
            "id": "00000000000000000000000001",
            "slug": "api_requests_total",
            "name": "API requests",
            "description": "Requests that a gateway served, one event each.",
            "aggregation": "COUNT",
            "event_type": "kong.api_request",
            "value_property": None,
            "group_by": {name: f"$.{name}" for name in REQUEST_DIMENSIONS},
        },
        {
            "id": "00000000000000000000000002",
            "slug": "llm_tokens_total",
            "name": "LLM tokens",
            "description": "Tokens by provider, model and type (request or response).",
            "aggregation": "SUM",
            "event_type": "kong.llm_request",
            "value_property": "$.tokens",
            "group_by": {name: f"$.{name}" for name in TOKEN_DIMENSIONS},
        },
    ]
    for row in rows:
        op.execute(METERS.insert().values(**row, created_at=now, updated_at=now))


def downgrade() -> None:
    op.execute(METERS.delete().where(METERS.c.id.startswith("0000000000000000000000000")))
