"""`tollgate cubes`: built from zero and proven, beside whatever else goes on."""

from sqlalchemy import Engine, text

from metering.events import append_events, keyed
from tests.server import tollgate
from tests.test_usage import NOW, call, driver


def test_cubes_are_built_from_zero_checked_and_found_out(engine: Engine, database_url: str) -> None:
    environment = {"TOLLGATE_DATABASE_URL": database_url}
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM meters WHERE aggregation = 'COUNT'"))
        connection.execute(
            text("UPDATE meters SET event_type = 'call', value_property = '$.v', group_by = '{}'")
        )
        event = call("1", "2026-03-01T10:00", '{"v": 5}')
        append_events(driver(connection), keyed([(event, NOW)]), now=NOW)
    for _ in range(2):
        assert tollgate("cubes", "rebuild", environment=environment).stdout == "Built 1 cubes.\n"
        checked = tollgate("cubes", "check", environment=environment)
        assert (checked.stdout, checked.returncode) == ("Every cube is what its events add up to.\n", 0)
    with engine.begin() as connection:
        assert connection.execute(text("UPDATE usage_hours SET sum = 6")).rowcount == 1
    checked = tollgate("cubes", "check", environment=environment)
    assert checked.returncode == 1
    assert checked.stdout == "2 rows of usage_hours differ from the events: call, $.v\n"
