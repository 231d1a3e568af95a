"""Prices of tokens: list prices that come with a release, and those that are set by hand."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from catalog.llm_prices import (
    Override,
    PriceExistsError,
    PriceNotFoundError,
    create_override,
    delete_override,
    get_price,
    list_prices,
    prices_of,
    pricing_of,
    system_prices,
)
from catalog.unit_cost import LlmPrice, LlmPricing, LlmUnitCost, ManualUnitCost, UnitCost
from metering.errors import InvalidError
from metering.ids import is_ulid
from tests.builders import START, at, at_once

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def an_override(session: Session, amount: str = "0.000002", **changes: Any) -> LlmPrice:
    usual = {
        "provider": "openai",
        "model": "gpt-4o",
        "currency": "USD",
        "effective_from": MARCH,
        "now": START,
    }
    pricing = LlmPricing(input_per_token=Decimal(amount), output_per_token=Decimal("0.000008"))
    return create_override(session, **{"pricing": pricing, "effective_from": MARCH, **usual, **changes})


def applying(session: Session, moment: datetime, model: str = "gpt-4o") -> list[str]:
    found = list_prices(session, provider="openai", model=model, at=moment)
    return [str(one.pricing.input_per_token) for one in found]


def test_list_prices_are_those_of_their_day(session: Session) -> None:
    assert applying(session, at("2024-05-12")) == []
    assert applying(session, at("2024-05-13")) == ["0.000005"]
    assert applying(session, at("2024-10-01T23:59:59")) == ["0.000005"]
    assert applying(session, at("2024-10-02")) == ["0.0000025"]
    assert applying(session, at("2026-03-01"), "GPT-4o") == ["0.0000025"]
    assert applying(session, at("2026-03-01"), "gpt-4o-2024-05-13") == ["0.000005"]


def test_every_list_price_has_an_id_of_its_own_that_stays(session: Session) -> None:
    ids = [price.id for price in system_prices()]
    assert len(set(ids)) == len(ids)
    assert all(map(is_ulid, ids))
    first = system_prices()[0]
    assert get_price(session, first.id) == first
    assert (first.source, first.provider, first.model) == ("system", "openai", "gpt-4")
    assert ids[0] == "0X2R5RV22FCGZ573NXAPCABR3P"


def test_an_override_goes_before_the_list_price_while_it_holds(session: Session) -> None:
    made = an_override(session, provider="Open_AI", model="openai/GPT-4o", effective_to=MARCH + DAY)
    assert (made.provider, made.model, made.model_name) == ("openai", "gpt-4o", "openai/GPT-4o")
    assert applying(session, MARCH - datetime.resolution) == ["0.0000025"]
    assert applying(session, MARCH) == ["0.000002"]
    assert applying(session, MARCH + DAY) == ["0.0000025"]
    session.expire_all()
    assert get_price(session, made.id) == made
    assert list_prices(session, source="manual") == [made]
    assert made not in list_prices(session, source="system")
    assert made in prices_of(session, [("openai", "gpt-4o"), ("openai", "o3")])
    assert {price.model for price in prices_of(session, [("openai", "o3")])} == {"o3"}


def test_a_later_override_cuts_an_earlier_and_both_are_kept(session: Session) -> None:
    an_override(session, "1")
    an_override(session, "2", effective_from=MARCH + DAY, effective_to=MARCH + 2 * DAY)
    days = [applying(session, MARCH + n * DAY) for n in range(3)]
    assert days == [["1"], ["2"], ["1"]]


def test_two_can_not_begin_at_one_instant(session: Session) -> None:
    an_override(session, "1")
    an_override(session, "1", model="gpt-4o-mini")
    with pytest.raises(PriceExistsError) as caught:
        an_override(session, "2", model="GPT-4O")
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("llm_price_exists", "$.effectiveFrom")


def test_of_two_who_set_one_price_at_once_one_wins(engine: Engine) -> None:
    second = at_once(engine, an_override, an_override)
    assert isinstance(second.exception(), PriceExistsError)


def test_postgresql_itself_refuses_a_price_that_ends_before_it_begins(session: Session) -> None:
    made = an_override(session)
    row = session.get_one(Override, made.id)
    row.effective_to = row.effective_from
    with pytest.raises(IntegrityError, match="llm_cost_overrides_period_check"):
        session.flush()
    session.rollback()


def test_what_is_deleted_was_never_there(session: Session) -> None:
    made = an_override(session)
    delete_override(session, made.id)
    assert applying(session, MARCH) == ["0.0000025"]
    for price_id in (made.id, system_prices()[0].id):
        with pytest.raises(PriceNotFoundError):
            delete_override(session, price_id)
    with pytest.raises(PriceNotFoundError):
        get_price(session, made.id)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"provider": ""}, "invalid_name", "$.provider"),
        ({"model": "m" * 257}, "invalid_name", "$.modelId"),
        ({"currency": "EUR"}, "currency_invalid", "$.currency"),
        ({"effective_to": MARCH}, "empty_period", "$.effectiveTo"),
        ({"amount": "-1"}, "cost_negative", "$.pricing.inputPerToken"),
        ({"amount": "1E-31"}, "cost_out_of_range", "$.pricing.inputPerToken"),
    ],
)
def test_a_broken_rule_is_refused_with_its_place(
    session: Session, changes: dict[str, Any], code: str, field: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        an_override(session, **changes)
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == (code, field)
    assert issue.hint
    assert list_prices(session, source="manual") == []


def test_pricing_is_known_of_what_is_fixed_and_has_a_price(session: Session) -> None:
    an_override(session, model="mine")

    def cost(model: str | None) -> LlmUnitCost:
        return LlmUnitCost(type="llm", provider="openai", model=model, token_type_property="type")  # noqa: S106  no password

    costs: dict[str, UnitCost | None] = {
        "listed": cost("gpt-4o"),
        "set": cost("mine"),
        "unknown": cost("theirs"),
        "told": cost(None),
        "manual": ManualUnitCost(type="manual", amount=Decimal(1)),
        "none": None,
    }
    found = pricing_of(session, costs, at=MARCH)
    amounts = {name: str(pricing.output_per_token) for name, pricing in found.items()}
    assert amounts == {"listed": "0.00001", "set": "0.000008"}
    assert pricing_of(session, costs, at=MARCH - DAY).keys() == {"listed"}
