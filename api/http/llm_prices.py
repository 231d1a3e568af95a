"""What tokens of language models cost: /api/v1/llm-cost."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query

from api.http.auth import admin, reader
from api.http.body import Body, ExactRoute, Instant, Page, PageNumber, PageSize
from api.http.session import Now, Transaction
from catalog import llm_prices
from catalog.unit_cost import LlmPrice, LlmPricing, PriceSource

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/llm-cost", tags=["LLM costs"], route_class=ExactRoute)


class Named(Body):
    id: str
    name: str


class LlmPriceBody(Body):
    """In USD for one token. A price set by hand (manual) goes before a list price (system)."""

    id: str
    provider: Named
    model: Named
    pricing: LlmPricing
    currency: str
    source: PriceSource
    effective_from: datetime
    effective_to: datetime | None = None
    created_at: datetime
    updated_at: datetime


class LlmPricePage(Page):
    items: list[LlmPriceBody]


class LlmCostOverrideCreate(Body):
    """Half-open: it holds from `effectiveFrom`, and no more at `effectiveTo`."""

    provider: str
    model_id: str
    model_name: str | None = None
    pricing: LlmPricing
    currency: str = "USD"
    effective_from: Instant
    effective_to: Instant | None = None


def price_body(price: LlmPrice) -> LlmPriceBody:
    return LlmPriceBody(
        id=price.id,
        provider=Named(id=price.provider, name=price.provider),
        model=Named(id=price.model, name=price.model_name),
        pricing=price.pricing,
        currency="USD",
        source=price.source,
        effective_from=price.effective_from,
        effective_to=price.effective_to,
        created_at=price.created_at,
        updated_at=price.updated_at,
    )


def _page(prices: Sequence[LlmPrice], page: int, page_size: int) -> LlmPricePage:
    shown = prices[(page - 1) * page_size : page * page_size]
    items = [price_body(price) for price in shown]
    return LlmPricePage(total_count=len(prices), page=page, page_size=page_size, items=items)


At = Annotated[Instant | None, Query(description="only what applies at that instant, once for each model")]


@router.get("/prices", operation_id="listLlmCostPrices", dependencies=[reader])
def list_prices(
    *,
    session: Transaction,
    provider: str | None = None,
    model: str | None = None,
    source: PriceSource | None = None,
    at: At = None,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> LlmPricePage:
    """Of all times, both list prices and those set by hand, or those that apply `at` an instant."""
    found = llm_prices.list_prices(session, provider=provider, model=model, source=source, at=at)
    return _page(found, page, page_size)


@router.get("/prices/{priceId}", operation_id="getLlmCostPrice", dependencies=[reader])
def get_price(session: Transaction, priceId: str) -> LlmPriceBody:  # noqa: N803  the wire's name
    return price_body(llm_prices.get_price(session, priceId))


@router.get("/overrides", operation_id="listLlmCostOverrides", dependencies=[reader])
def list_overrides(
    *,
    session: Transaction,
    provider: str | None = None,
    model: str | None = None,
    at: At = None,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> LlmPricePage:
    """The prices set by hand."""
    found = llm_prices.list_prices(session, provider=provider, model=model, source="manual", at=at)
    return _page(found, page, page_size)


@router.post("/overrides", operation_id="createLlmCostOverride", status_code=201, dependencies=[admin])
def create_override(session: Transaction, now: Now, body: LlmCostOverrideCreate) -> LlmPriceBody:
    """Where several hold at an instant, the one that began last applies."""
    price = llm_prices.create_override(
        session,
        provider=body.provider,
        model=body.model_id,
        model_name=body.model_name,
        pricing=body.pricing,
        currency=body.currency,
        effective_from=body.effective_from,
        effective_to=body.effective_to,
        now=now,
    )
    return price_body(price)


@router.delete(
    "/overrides/{priceId}", operation_id="deleteLlmCostOverride", status_code=204, dependencies=[admin]
)
def delete_override(session: Transaction, priceId: str) -> None:  # noqa: N803  the wire's name
    """What it covered holds again."""
    llm_prices.delete_override(session, priceId)
