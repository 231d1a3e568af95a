"""Tax rates: /api/v1/billing/tax-rates, an endpoint of our own."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import StringConstraints

from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Instant, Metadata, Page, PageNumber, PageSize, page_of
from api.http.session import Now, Snapshot, Transaction
from billing.taxes import tax_rates
from billing.taxes.tax_rates import TaxRate, TaxRateDetails
from metering.wire import Number

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/billing/tax-rates", tags=["Taxes"], route_class=ExactRoute)

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Place = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=256)]


class _RateFields(Body):
    """`code`: a tax code's id, Stripe's, or that of custom invoicing; without, for all that has no rate."""

    name: Name
    code: Place | None = None
    country: str
    state: Place | None = None
    percent: Number
    metadata: Metadata | None = None


class TaxRateReplace(_RateFields):
    """Valid from `validFrom`, up to and without `validTo`."""

    READ_ONLY = RESOURCE

    valid_from: Instant
    valid_to: Instant | None = None

    @property
    def details(self) -> TaxRateDetails:
        return TaxRateDetails(**dict(self))


class TaxRateBody(_RateFields):
    id: str
    valid_from: datetime
    valid_to: datetime | None = None
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None


class TaxRatePage(Page):
    items: list[TaxRateBody]


def _body(rate: TaxRate) -> TaxRateBody:
    return TaxRateBody(
        id=rate.id,
        name=rate.name,
        code=rate.code,
        country=rate.country,
        state=rate.state,
        percent=rate.percent,
        metadata=rate.metadata_,
        valid_from=rate.valid_from,
        valid_to=rate.valid_to,
        created_at=rate.created_at,
        updated_at=rate.updated_at,
        deleted_at=rate.deleted_at,
    )


@router.get("", operation_id="listTaxRates", dependencies=[reader])
def list_all(
    *,
    session: Snapshot,
    country: str | None = None,
    code: str | None = None,
    include_deleted: Annotated[bool, Query(alias="includeDeleted")] = False,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> TaxRatePage:
    found, count = tax_rates.list_tax_rates(
        session, country=country, code=code, include_deleted=include_deleted, **page_of(page, page_size)
    )
    return TaxRatePage(total_count=count, page=page, page_size=page_size, items=list(map(_body, found)))


@router.post("", operation_id="createTaxRate", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, body: TaxRateReplace) -> TaxRateBody:
    """Refused where another holds for the same code and place at the same time."""
    return _body(tax_rates.create_tax_rate(session, body.details, now=now))


@router.get("/{taxRateId}", operation_id="getTaxRate", dependencies=[reader])
def get(session: Snapshot, taxRateId: str) -> TaxRateBody:  # noqa: N803  the wire's name
    return _body(tax_rates.get_tax_rate(session, taxRateId))


@router.put("/{taxRateId}", operation_id="updateTaxRate", dependencies=[admin])
def update(session: Transaction, now: Now, taxRateId: str, body: TaxRateReplace) -> TaxRateBody:  # noqa: N803
    """Replace everything. What was issued keeps the tax it has; drafts follow when they are taxed again."""
    return _body(tax_rates.update_tax_rate(session, taxRateId, body.details, now=now))


@router.delete("/{taxRateId}", operation_id="deleteTaxRate", status_code=204, dependencies=[admin])
def delete(session: Transaction, now: Now, taxRateId: str) -> None:  # noqa: N803  the wire's name
    """Nothing more is taxed by it; what was stays so."""
    tax_rates.delete_tax_rate(session, taxRateId, now=now)
