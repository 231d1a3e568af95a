"""Lines of invoices on the wire: every line shows what the rater said of it, and why.

Those of stored invoices, of the gathering preview and of the simulation are all made here, of a RatedLine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter

from api.http.body import decimal_text, present
from api.http.invoice_body import (
    BillingDiscountUsage,
    DetailedLineBody,
    DetailedPrice,
    DetailedRateCard,
    LineAmountDiscount,
    LineBody,
    LineSubscription,
    LineTaxBody,
    LineUsageDiscount,
    MaximumSpend,
    PeriodBody,
    RatecardPercentage,
    RatecardUsage,
    SpelledTaxConfig,
    TotalsBody,
    UsageBasedRateCard,
    period_body,
    price_body,
)
from billing.rating.rater import AmountDiscount, DetailedLine, Rating, Totals
from billing.taxes.tax import LineTax
from catalog.money import minor_digits
from catalog.price import FlatPrice, PaymentTerm
from catalog.tax import TaxConfig
from catalog.unit_config import UnitConfig
from metering.ids import derived_id
from metering.period import Period

__all__ = ["RatedLine", "line_body", "tax_body", "totals_body"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedLine:
    """What a line is shown from. `identity` is what ids are derived from, its own too unless it has one.

    `metered` is the quantity as it was metered, before conversion and usage discount, and None for a fee.
    """

    identity: tuple[str, ...]
    id: str | None = None
    name: str
    description: str | None = None
    metadata: Mapping[str, str] | None = None
    managed_by: Literal["subscription", "manual"]
    currency: str
    created_at: datetime
    updated_at: datetime
    period: Period
    invoice_at: datetime
    rate_card: UsageBasedRateCard
    metered: Decimal | None
    metered_before: Decimal = Decimal(0)
    rating: Rating
    subscription: LineSubscription | None = None

    @property
    def fee(self) -> bool:
        return isinstance(self.rate_card.price, FlatPrice)

    @property
    def payment_term(self) -> PaymentTerm:
        price = self.rate_card.price
        return price.payment_term if isinstance(price, FlatPrice) else "in_arrears"


def line_body(line: RatedLine) -> LineBody:
    card, period = _card_body(line.rate_card), period_body(line.period)
    tax_config = card.get("taxConfig")
    body: LineBody = {
        "type": "usage_based",
        "id": line.id or derived_id(*line.identity),
        "name": line.name,
        "createdAt": line.created_at,
        "updatedAt": line.updated_at,
        "managedBy": line.managed_by,
        "status": "valid",
        "currency": line.currency,
        "period": period,
        "invoiceAt": line.invoice_at,
        "rateCard": card,
        "quantity": "1" if line.fee else decimal_text(line.rating.quantity),
        "children": [_detail(line, detail, period, tax_config) for detail in line.rating.details],
        "totals": totals_body(line.rating.totals, line.currency),
    }
    _add_words(body, line)
    _add_quantities(body, line)
    return body


def _card_body(card: UsageBasedRateCard) -> dict[str, Any]:
    """As pydantic would spell it, in half the time."""
    body: dict[str, Any] = {}
    if card.feature_key is not None:
        body["featureKey"] = card.feature_key
    if card.tax_config is not None:
        body["taxConfig"] = _tax_config(card.tax_config)
    if card.price is not None:
        body["price"] = price_body(card.price)
    if card.discounts is not None:
        body["discounts"] = card.discounts.model_dump(mode="json", by_alias=True, exclude_none=True)
    if card.unit_config is not None:
        body["unitConfig"] = present(_UNIT_CONFIG.dump_python(card.unit_config, mode="json", by_alias=True))
    return body if card.price is not None else {**body, "price": None}


def _tax_config(config: TaxConfig) -> SpelledTaxConfig:
    spelled: SpelledTaxConfig = _TAX_CONFIG.dump_python(config, mode="json", by_alias=True, exclude_none=True)
    return spelled


_TAX_CONFIG, _UNIT_CONFIG = TypeAdapter(TaxConfig), TypeAdapter(UnitConfig)


def _add_words(body: LineBody, line: RatedLine) -> None:
    """What was said of the line, as far as something was."""
    card = body["rateCard"]
    if line.description is not None:
        body["description"] = line.description
    if line.metadata is not None:
        body["metadata"] = dict(line.metadata)
    if card["price"] is not None:
        body["price"] = card["price"]
    if "taxConfig" in card:
        body["taxConfig"] = card["taxConfig"]
    if "featureKey" in card:
        body["featureKey"] = card["featureKey"]
    if line.subscription is not None:
        body["subscription"] = line.subscription


def _add_quantities(body: LineBody, line: RatedLine) -> None:
    if line.metered is None:
        return
    body["meteredQuantity"] = decimal_text(line.metered)
    body["preLinePeriodQuantity"] = decimal_text(line.rating.quantity_before)
    body["meteredPreLinePeriodQuantity"] = decimal_text(line.metered_before)
    agreed, rating = line.rate_card.discounts, line.rating
    if agreed and agreed.usage and (rating.usage_discount or rating.usage_discount_before):
        body["discounts"] = {"usage": [_usage_discount(line, agreed.usage)]}


# -- Detailed lines ------------------------------------------------------------------------------------------


def _detail(
    line: RatedLine, detail: DetailedLine, period: PeriodBody, tax_config: SpelledTaxConfig | None
) -> DetailedLineBody:
    quantity, amount = decimal_text(detail.quantity), decimal_text(detail.per_unit_amount)
    term = line.payment_term
    price: DetailedPrice = {"type": "flat", "amount": amount, "paymentTerm": term}
    card: DetailedRateCard = {"price": price, "quantity": quantity}
    if tax_config is not None:
        card["taxConfig"] = tax_config
    body: DetailedLineBody = {
        "type": "flat_fee",
        "id": derived_id(*line.identity, detail.reference),
        "name": detail.name,
        "description": detail.description,
        "createdAt": line.created_at,
        "updatedAt": line.updated_at,
        "managedBy": "system",
        "status": "detailed",
        "category": detail.category,
        "currency": line.currency,
        "period": period,
        "invoiceAt": line.invoice_at,
        "perUnitAmount": amount,
        "quantity": quantity,
        "paymentTerm": term,
        "rateCard": card,
        "totals": _detail_totals(detail, line.currency),
    }
    if detail.discounts:
        body["discounts"] = {"amount": [_amount_discount(line, detail, one) for one in detail.discounts]}
    return body


def _detail_totals(detail: DetailedLine, currency: str) -> TotalsBody:
    amount, nothing = _money(detail.amount, currency), _nothing(currency)
    regular = detail.category == "regular"
    return {
        "amount": amount if regular else nothing,
        "chargesTotal": nothing if regular else amount,
        "discountsTotal": _money(detail.discounted, currency) if detail.discounts else nothing,
        "creditsTotal": nothing,
        "taxesInclusiveTotal": nothing,
        "taxesExclusiveTotal": nothing,
        "taxesTotal": nothing,
        "total": _money(detail.total, currency) if detail.discounts else amount,
    }


def _amount_discount(line: RatedLine, detail: DetailedLine, discount: AmountDiscount) -> LineAmountDiscount:
    return {
        "id": derived_id(*line.identity, detail.reference, discount.reason),
        "createdAt": line.created_at,
        "updatedAt": line.updated_at,
        "reason": _reason(line, discount),
        "description": discount.description,
        "amount": _money(discount.amount, line.currency),
    }


def _reason(line: RatedLine, discount: AmountDiscount) -> MaximumSpend | RatecardPercentage:
    agreed = line.rate_card.discounts
    if discount.reason == "maximum_spend" or agreed is None or agreed.percentage is None:
        return MaximumSpend()
    return RatecardPercentage(**dict(agreed.percentage))


def _usage_discount(line: RatedLine, agreed: BillingDiscountUsage) -> LineUsageDiscount:
    return {
        "id": derived_id(*line.identity, "ratecard_usage"),
        "createdAt": line.created_at,
        "updatedAt": line.updated_at,
        "reason": RatecardUsage(**dict(agreed)),
        "quantity": decimal_text(line.rating.usage_discount),
        "preLinePeriodQuantity": decimal_text(line.rating.usage_discount_before),
    }


# -- Amounts -------------------------------------------------------------------------------------------------


def tax_body(tax: LineTax, currency: str) -> LineTaxBody:
    body: LineTaxBody = {
        "percent": tax.percent,
        "behavior": tax.behavior,
        "base": _money(tax.base, currency),
        "amount": _money(tax.amount, currency),
    }
    if tax.config is not None:
        body["config"] = _tax_config(tax.config)
    if tax.code is not None:
        body["code"] = tax.code
    return body


def totals_body(totals: Totals, currency: str) -> TotalsBody:
    return {
        "amount": _money(totals.amount, currency),
        "chargesTotal": _money(totals.charges, currency),
        "discountsTotal": _money(totals.discounts, currency),
        "creditsTotal": _money(totals.credits, currency),
        "taxesInclusiveTotal": _money(totals.taxes_inclusive, currency),
        "taxesExclusiveTotal": _money(totals.taxes_exclusive, currency),
        "taxesTotal": _money(totals.taxes, currency),
        "total": _money(totals.total, currency),
    }


def _money(amount: Decimal, currency: str) -> str:
    """With the digits of the currency's minor unit: 2.50 in USD, 3 in JPY."""
    return f"{amount:.{minor_digits(currency)}f}" if amount else _nothing(currency)


@cache
def _nothing(currency: str) -> str:
    return f"{Decimal(0):.{minor_digits(currency)}f}"
