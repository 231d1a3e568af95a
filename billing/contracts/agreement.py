"""What a customer agrees to: a plan's version that is sold, or terms of their own (a custom plan)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.orm import Session

from billing.contracts.customer import Customer
from catalog.features import latest_features
from catalog.issues import barring
from catalog.plan import check_plan
from catalog.plans import Plan
from catalog.rate_card import Phase, RateCard
from metering.errors import InvalidError, Issue

__all__ = [
    "Agreement",
    "CustomPlan",
    "PlanNotActiveError",
    "UnknownPhaseError",
    "agreement_of",
    "settle_currency",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomPlan:
    """Terms for one customer. The same rules hold as for a plan."""

    name: str
    description: str | None = None
    metadata: Mapping[str, str] | None = None
    currency: str
    billing_cadence: str
    pro_rating: bool = True
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The terms, and which features their keys mean. Without a `plan_id` they are the customer's own."""

    plan: Plan | None
    name: str
    description: str | None
    metadata: Mapping[str, str] | None
    currency: str
    billing_cadence: str
    pro_rating: bool
    phases: Sequence[Phase]
    feature_ids: Mapping[str, str]

    @property
    def priced(self) -> bool:
        return any(card.price is not None for phase in self.phases for card in phase.rate_cards)


class PlanNotActiveError(InvalidError):
    pass


class UnknownPhaseError(InvalidError):
    pass


def agreement_of(
    session: Session,
    terms: Plan | CustomPlan,
    *,
    starting_phase: str | None = None,
    archived_too: bool = False,
    now: datetime,
) -> Agreement:
    """From `starting_phase` on; a plan must be sold now, or have been when `archived_too`."""
    if isinstance(terms, CustomPlan):
        return _custom(session, terms)
    _require_sold(terms, now, archived_too=archived_too)
    return Agreement(
        plan=terms,
        name=terms.name,
        description=terms.description,
        metadata=None,
        currency=terms.currency,
        billing_cadence=terms.billing_cadence,
        pro_rating=terms.pro_rating,
        phases=_phases_from(terms, starting_phase),
        feature_ids=terms.feature_ids,
    )


def _custom(session: Session, terms: CustomPlan) -> Agreement:
    keys = {card.feature_key for card in _cards(terms) if card.feature_key}
    features = latest_features(session, keys, lock=True)
    found = check_plan(
        currency=terms.currency,
        billing_cadence=terms.billing_cadence,
        phases=terms.phases,
        features={key: feature.facts for key, feature in features.items()},
    )
    issues = [replace(issue, field=f"$.customPlan{issue.field[1:]}") for issue in barring(found)]
    if issues:
        raise InvalidError(issues[0].message, *issues)
    return Agreement(
        plan=None,
        name=terms.name,
        description=terms.description,
        metadata=terms.metadata,
        currency=terms.currency,
        billing_cadence=terms.billing_cadence,
        pro_rating=terms.pro_rating,
        phases=terms.phases,
        feature_ids={key: feature.id for key, feature in features.items()},
    )


def _cards(terms: CustomPlan) -> list[RateCard]:
    return [card for phase in terms.phases for card in phase.rate_cards]


def _require_sold(plan: Plan, now: datetime, *, archived_too: bool) -> None:
    status = plan.status(now)
    if status == "active" or (archived_too and status == "archived"):
        return
    message = f"the plan {plan.key!r} version {plan.version} is {status}: only an active plan is sold"
    hint = "Publish it first: POST /api/v1/plans/{planId}/publish."
    raise PlanNotActiveError(
        message, Issue(code="plan_invalid_status", message=message, field="$.plan", hint=hint)
    )


def _phases_from(plan: Plan, key: str | None) -> tuple[Phase, ...]:
    """The plan's phases without those before `key`."""
    for i, phase in enumerate(plan.phases):
        if key in (None, phase.key):
            return plan.phases[i:]
    message = f"the plan has no phase {key!r}"
    raise UnknownPhaseError(message, Issue(code="unknown_phase", message=message, field="$.startingPhase"))


def settle_currency(customer: Customer, terms: Agreement) -> None:
    """The first priced subscription fixes the customer's currency."""
    if not terms.priced:
        return
    if customer.currency not in (None, terms.currency):
        message = f"the customer pays in {customer.currency}, the plan costs {terms.currency}"
        field = "$.plan" if terms.plan else "$.customPlan.currency"
        raise InvalidError(message, Issue(code="currency_mismatch", message=message, field=field))
    customer.currency = terms.currency
