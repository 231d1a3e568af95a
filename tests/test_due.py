"""What is due is found without going through all that was ever billed."""

from sqlalchemy.orm import Session

from billing.contracts.customer import Customer
from billing.contracts.subscription_changes import cancel_subscription
from billing.contracts.subscriptions import Subscription
from billing.invoices.due import billables_of, earlier_of, payers_of
from tests.billing_clock import bill_until
from tests.builders import a_customer, a_metered_feature, a_plan, at, fee, per_unit, phase, sign_up

NOW = at("2028-01-15")


def billed_for_two_years(session: Session) -> tuple[Customer, Subscription]:
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    subscription = sign_up(session, customer, a_plan(session, phase(fee("20"), per_unit())))
    bill_until(session, NOW)
    return customer, subscription


def looked_at(session: Session, customer: Customer) -> tuple[int, int]:
    """Charges, and those of them that were billed."""
    (payer,) = payers_of(session, [customer], {}, NOW)
    return len(list(billables_of(payer, NOW))), len(earlier_of(session, [payer]))


def test_however_long_a_contract_runs_only_what_may_still_change_is_looked_at(session: Session) -> None:
    customer, subscription = billed_for_two_years(session)
    assert looked_at(session, customer) == (8, 7), "four months, of which the last one's usage is not billed"
    assert subscription.settled_until == at("2027-10-01")


def test_when_the_contract_is_written_anew_all_of_it_is_looked_at(session: Session) -> None:
    customer, subscription = billed_for_two_years(session)
    cancel_subscription(session, subscription.id, timing="next_billing_cycle", now=NOW)
    assert subscription.settled_until is None
    assert looked_at(session, customer) == (50, 49), "25 months of a fee and of usage"
    bill_until(session, at("2028-01-16"))
    assert subscription.settled_until == at("2027-11-01"), "two months later usage is billed no more"
