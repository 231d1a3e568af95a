from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from catalog.price import FlatPrice, Price, UnitPrice
from catalog.price_rules import check_price
from catalog.rate_card import Phase, RateCard
from tests.builders import fee, per_unit, phase

anything = st.decimals() | st.builds(
    lambda digits, exponent: Decimal(f"{digits}E{exponent}"), st.integers(), st.integers(-999, 999)
)
wire: TypeAdapter[Price] = TypeAdapter(Price)
wire_card: TypeAdapter[RateCard] = TypeAdapter(RateCard)
wire_phase: TypeAdapter[Phase] = TypeAdapter(Phase)


def codes(price: Price) -> list[str]:
    return [issue.code for issue in check_price(price, "$.price")]


@pytest.mark.parametrize("amount", ["0", "-0", "0.00000075", "20", "9" * 30, f"0.{'9' * 30}", "1E+29"])
def test_an_amount_of_up_to_thirty_digits_on_either_side_is_a_price(amount: str) -> None:
    assert codes(UnitPrice(type="unit", amount=Decimal(amount))) == []


@pytest.mark.parametrize("amount", ["9" * 31, f"0.{'0' * 30}1", "1E+30", "1E-31", "NaN", "sNaN", "Infinity"])
def test_an_amount_beyond_thirty_digits_or_beyond_numbers_is_refused(amount: str) -> None:
    (issue,) = check_price(FlatPrice(type="flat", amount=Decimal(amount)), "$.phases[0].rateCards[1].price")
    assert issue.code == "price_amount_out_of_range"
    assert issue.field == "$.phases[0].rateCards[1].price.amount"
    assert issue.severity == "critical"


def test_a_negative_price_is_refused_with_advice() -> None:
    (issue,) = check_price(UnitPrice(type="unit", amount=Decimal("-0.01")), "$.price")
    assert (issue.code, issue.field, issue.severity) == (
        "price_amount_negative",
        "$.price.amount",
        "critical",
    )
    assert "credit" in issue.hint


@given(anything)
def test_checking_a_price_never_raises(amount: Decimal) -> None:
    codes(FlatPrice(type="flat", amount=amount))


@given(anything)
def test_a_price_that_passes_travels_as_json_without_losing_a_digit(amount: Decimal) -> None:
    price = UnitPrice(type="unit", amount=amount)
    if not codes(price):
        assert wire.validate_json(wire.dump_json(price, by_alias=True)) == price


def test_a_flat_price_is_paid_in_advance_unless_it_says_otherwise() -> None:
    assert wire.validate_python({"type": "flat", "amount": "5"}) == FlatPrice(
        type="flat", amount=Decimal(5), payment_term="in_advance"
    )


@pytest.mark.parametrize(
    "sent",
    [
        {"type": "unit", "amount": "1", "leastAmount": "5"},
        {"type": "unit", "amount": "1", "paymentTerm": "in_advance"},
        {"type": "flat", "amount": "1", "discount": {"percentage": 50}},
        {"type": "flat", "amount": "1", "paymentTerm": "whenever"},
        {"type": "unit", "amount": "NaN"},
        {"type": "unit"},
        {"type": "tiered", "amount": "1"},
    ],
    ids="-".join,
)
def test_a_price_with_a_member_that_is_not_understood_is_refused(sent: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        wire.validate_python(sent)


def test_a_phase_travels_in_camel_case_and_comes_back_equal() -> None:
    original = phase(fee("10.00"), per_unit("0.00000075"), key="trial", duration="P1M")
    sent = wire_phase.dump_python(original, mode="json", by_alias=True)
    assert set(sent["rateCards"][1]) >= {"featureKey", "billingCadence", "entitlementTemplate"}
    assert wire_phase.validate_python(sent) == original


def test_a_card_takes_no_price_that_its_type_does_not_have() -> None:
    unit = {"type": "unit", "amount": "1"}
    with pytest.raises(ValidationError):
        wire_card.validate_python({"type": "flat_fee", "key": "a", "name": "a", "price": unit})
    with pytest.raises(ValidationError, match="billingCadence"):
        wire_card.validate_python({"type": "usage_based", "key": "a", "name": "a", "price": unit})


def test_a_price_without_a_type_is_no_price() -> None:
    """It must not become a flat fee by default: the usage it was meant for would go unbilled."""
    with pytest.raises(ValidationError):
        wire.validate_python({"amount": "0.1"})
