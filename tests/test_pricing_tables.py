"""The tables of docs/pricing.md, each computed by the rater from the rate card above it."""

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from billing.rating.pricing import Usage
from billing.rating.rater import NO_DISCOUNTS, Rating, Terms, rate
from catalog.price import FlatPrice
from catalog.price_rules import check_price
from catalog.rate_card import UsageBasedRateCard
from metering.exact import total
from tests.documents import Row, rows_of, tables_of

TEXT = (Path(__file__).parent.parent / "docs" / "pricing.md").read_text(encoding="utf-8")
CARD: TypeAdapter[UsageBasedRateCard] = TypeAdapter(UsageBasedRateCard)


def worked() -> Iterator[tuple[str, UsageBasedRateCard, Row]]:
    """Each row with its heading and the rate card above its table."""
    heading, card = "", None
    parts = re.split(
        r"^## (.*?)$|^```json\n(.*?)^```$|((?:^\|[^\n]*\n)+)", TEXT, flags=re.MULTILINE | re.DOTALL
    )
    for title, block, table in zip(parts[1::4], parts[2::4], parts[3::4], strict=True):
        if title:
            heading = title
        elif block:
            card = card_of(block)
        else:
            assert card is not None
            for row in rows_of(table):
                yield heading, card, row


def card_of(block: str) -> UsageBasedRateCard:
    rest = '"type": "usage_based", "key": "tokens", "name": "Tokens", "billingCadence": "P1M"'
    return CARD.validate_json(f"{{{rest}, {block.strip()[1:]}")


WORKED = list(worked())
HEADINGS = {heading for heading, _, _ in WORKED}


def test_every_model_has_a_table() -> None:
    assert {
        "Unit",
        "Graduated tiers",
        "Volume tiers",
        "Package",
        "Dynamic",
        "Percentage",
        "Matrix",
    } <= HEADINGS
    assert {"Tiers for each group", "Commitments", "Discounts", "Unit conversion", "Currencies"} <= HEADINGS
    assert len(WORKED) == sum(map(len, tables_of(TEXT)))


@pytest.mark.parametrize(("heading", "card", "row"), WORKED, ids=lambda it: it if isinstance(it, str) else "")
def test_the_document_prices_as_the_code_does(heading: str, card: UsageBasedRateCard, row: Row) -> None:
    rating = rate(terms_of(card, row), usage_of(row), before=Usage(quantity=Decimal(row.get("before", "0"))))
    assert shown(rating, row) == row, f"{heading}: {[line.description for line in rating.details]}"


def terms_of(card: UsageBasedRateCard, row: Row) -> Terms:
    assert card.price is not None
    assert not isinstance(card.price, FlatPrice)
    assert list(check_price(card.price, "$")) == []
    return Terms(
        price=card.price,
        name=card.name,
        currency=row.get("currency", "USD"),
        discounts=card.discounts or NO_DISCOUNTS,
        unit_config=card.unit_config,
    )


def usage_of(row: Row) -> Usage:
    if "groups" in row:
        named = [entry.rsplit(" ", 1) for entry in row["groups"].split(", ")]
        return Usage(groups={tuple(name.split("/")): Decimal(quantity) for name, quantity in named})
    if "events" in row:
        sizes = {
            Decimal(size): int(n) for n, size in (one.split(" of ") for one in row["events"].split(", "))
        }
        value = total(size * count for size, count in sizes.items())
        return Usage(quantity=value, events=sum(sizes.values()), sizes=sizes)
    return Usage(quantity=Decimal(row["units"]))


def shown(rating: Rating, row: Row) -> Row:
    """The row as the rater would write it."""
    regular = [str(line.amount) for line in rating.details if line.category == "regular"]
    found: dict[str, Any] = {
        "lines": " + ".join(regular),
        "off": f"{rating.totals.discounts:.2f}",
        "top-up": f"{rating.totals.charges:.2f}",
        "total": str(rating.totals.total) if rating.details else "0.00",
    }
    return {name: found.get(name, given) for name, given in row.items()}
