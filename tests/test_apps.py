"""Apps: what can be installed, and for how long one must stay; the sandbox and what it does with invoices."""

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from billing.apps.app_changes import AppDetails, AppInUseError, install_app, uninstall_app, update_app
from billing.contracts.customer import Address, Customer
from billing.contracts.customer_changes import delete_customer
from billing.invoices.actions import VoidAction, act, delete_invoice, void_invoice
from billing.invoices.invoice import Invoice
from billing.profiles.app import SANDBOX_WISH, App, AppNotFoundError, AppType, get_app, get_listing, list_apps
from billing.profiles.customer_apps import (
    CustomerAppDetails,
    CustomerAppNotFoundError,
    delete_customer_app,
    list_customer_apps,
    save_customer_apps,
)
from billing.profiles.customer_overrides import pin_profile, unpin_profile
from billing.profiles.profile import Party, get_profile, list_profiles
from billing.profiles.profile_changes import ProfileApps, ProfileDetails, create_profile, delete_profile
from billing.profiles.workflow import InvoicingSettings, Workflow
from billing.runs.run import run_portion
from metering.errors import ConflictError, InvalidError
from tests.billing_clock import bill_until, invoices_of
from tests.builders import START, a_customer, a_plan, at, at_once, fee, phase, sign_up

SANDBOX = "00000000000000000000000003"


def signed_up(session: Session, wish: str | None = None, amount: str = "20") -> Customer:
    """Billed this much on the first of January, with this wish for the sandbox."""
    customer = a_customer(session)
    customer.metadata_ = None if wish is None else {SANDBOX_WISH: wish}
    plan = a_plan(session, phase(fee(amount)), key=f"plan_{customer.id.lower()}")
    sign_up(session, customer, plan)
    return customer


def billed_by(session: Session, app: App, customer: Customer, *, auto_advance: bool = True) -> str:
    """Pin the customer to a profile of this app; its id."""
    workflow = Workflow(invoicing=InvoicingSettings(auto_advance=auto_advance))
    details = ProfileDetails(name="Own", supplier=Party(name="ACME"), workflow=workflow)
    apps = ProfileApps(tax=app.id, invoicing=app.id, payment=app.id)
    profile = create_profile(session, details, apps=apps, now=START)
    pin_profile(session, customer.id, profile_id=profile.id, now=START)
    return profile.id


def only_invoice(session: Session) -> Invoice:
    (invoice,) = invoices_of(session)
    return invoice


# -- The sandbox ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        (None, "paid"),
        ("paid", "paid"),
        ("failed", "payment_processing.failed"),
        ("uncollectible", "uncollectible"),
        ("action_required", "payment_processing.action_required"),
        ("whatever", "payment_processing.pending"),
    ],
)
def test_the_sandbox_does_with_an_invoice_what_the_customer_says(
    session: Session, wish: str | None, status: str
) -> None:
    signed_up(session, wish)
    bill_until(session, START)
    assert only_invoice(session).status == status


def test_the_sandbox_does_with_a_draft_what_is_said_of_the_draft(session: Session) -> None:
    customer = signed_up(session, "paid")
    billed_by(session, get_app(session, SANDBOX), customer, auto_advance=False)
    bill_until(session, START)
    draft = only_invoice(session)
    assert draft.status == "draft.manual_approval_needed"
    draft.metadata_ = {SANDBOX_WISH: "failed"}
    session.flush()
    assert act(session, draft.id, "approve", now=START).status == "payment_processing.failed"


@pytest.mark.parametrize("app_type", ["sandbox", "custom_invoicing"])
def test_a_draft_that_is_given_up_waits_for_no_app(session: Session, app_type: str) -> None:
    custom = install_app(session, "custom_invoicing", now=START)
    custom.draft_sync_hook = custom.issuing_sync_hook = True
    app = custom if app_type == "custom_invoicing" else get_app(session, SANDBOX)
    billed_by(session, app, signed_up(session), auto_advance=False)
    bill_until(session, START)
    assert delete_invoice(session, only_invoice(session).id, now=START).status == "deleted"


def test_where_nothing_is_to_be_paid_no_wish_counts(session: Session) -> None:
    signed_up(session, "failed", amount="0")
    bill_until(session, START)
    assert only_invoice(session).status == "paid"


def test_a_failed_payment_is_tried_again_as_it_is_wished_by_then(session: Session) -> None:
    signed_up(session, "failed")
    bill_until(session, START)
    invoice = only_invoice(session)
    assert act(session, invoice.id, "retry", now=START).status == "payment_processing.failed"
    invoice.metadata_ = {SANDBOX_WISH: "paid"}
    session.flush()
    assert act(session, invoice.id, "retry", now=START).status == "paid"


def test_an_invoice_whose_payment_is_open_when_it_is_due_is_overdue(session: Session) -> None:
    signed_up(session, "action_required")
    bill_until(session, at("2026-01-30"))
    assert only_invoice(session).status == "payment_processing.action_required"
    bill_until(session, at("2026-01-31"))
    assert only_invoice(session).status == "overdue"


# -- Installing ----------------------------------------------------------------------------------------------


def test_a_fresh_database_has_the_sandbox_and_any_number_of_custom_apps_come_after(session: Session) -> None:
    names = ("Ours", None)
    installed = [install_app(session, "custom_invoicing", name=name, now=START) for name in names]
    assert [app.name for app in installed] == ["Ours", "Custom Invoicing"]
    found, count = list_apps(session)
    assert ([app.type for app in found], count) == (["sandbox", "custom_invoicing", "custom_invoicing"], 3)
    assert [app.type for app in list_apps(session, offset=1, limit=1)[0]] == ["custom_invoicing"]


def test_there_is_one_sandbox_at_most(session: Session) -> None:
    with pytest.raises(ConflictError) as error, session.begin_nested():
        install_app(session, "sandbox", now=START)
    assert [issue.code for issue in error.value.issues] == ["app_already_installed"]
    assert list_apps(session)[1] == 1


def test_an_app_gets_a_profile_of_its_own_where_one_is_asked_for(session: Session) -> None:
    """Like the default one, which it does not become: nobody is invoiced otherwise than before."""
    usual = get_profile(session, None)
    usual.supplier = Party(name="ACME", addresses=(Address(country="DE"),))
    usual.workflow = Workflow(invoicing=InvoicingSettings(draft_period="P3D"))
    install_app(session, "custom_invoicing", now=START)
    app = install_app(session, "custom_invoicing", name="Ours", with_profile=True, now=START)
    (profile,) = [one for one in list_profiles(session)[0] if one.app_id != usual.app_id]
    assert (profile.name, profile.app_id, profile.is_default) == ("Ours", app.id, False)
    assert (profile.supplier, profile.workflow) == (usual.supplier, usual.workflow)
    assert get_profile(session, None) is usual
    with pytest.raises(AppInUseError):
        uninstall_app(session, app.id, now=START)


def test_two_who_install_the_sandbox_at_once_install_one(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        get_app(session, SANDBOX).deleted_at = START
    second = at_once(
        engine,
        lambda session: install_app(session, "sandbox", now=START),
        lambda session: install_app(session, "sandbox", now=START),
    )
    assert isinstance(second.exception(), ConflictError)


@pytest.mark.parametrize("app_type", ["stripe", "", "Sandbox"])
def test_what_is_not_in_the_list_is_not_installed(session: Session, app_type: str) -> None:
    with pytest.raises(AppNotFoundError):
        install_app(session, app_type, now=START)
    with pytest.raises(AppNotFoundError):
        get_listing(app_type)


# -- Changing ------------------------------------------------------------------------------------------------


def test_a_change_replaces_everything_but_the_type(session: Session) -> None:
    app = install_app(session, "custom_invoicing", now=START)
    wanted = AppDetails(
        type="custom_invoicing",
        name="Ours",
        metadata={"a": "b"},
        draft_sync_hook=True,
        issuing_sync_hook=True,
    )
    later = at("2026-02-01")
    update_app(session, app.id, wanted, now=later)
    session.expire_all()
    found = get_app(session, app.id)
    assert (found.name, found.description, found.metadata_) == ("Ours", None, {"a": "b"})
    assert (found.draft_sync_hook, found.issuing_sync_hook, found.updated_at) == (True, True, later)
    with pytest.raises(InvalidError) as error:
        update_app(session, app.id, AppDetails(type="sandbox", name="Other"), now=later)
    assert [(issue.code, issue.field) for issue in error.value.issues] == [("app_type_mismatch", "$.type")]
    assert get_app(session, app.id).name == "Ours"


@pytest.mark.parametrize("hook", ["draft_sync_hook", "issuing_sync_hook"])
def test_invoices_do_not_wait_for_a_hook_that_is_no_more(session: Session, hook: str) -> None:
    app = install_app(session, "custom_invoicing", now=START)
    setattr(app, hook, True)
    billed_by(session, app, signed_up(session))
    bill_until(session, START)
    assert only_invoice(session).status == hook.replace("_sync_hook", ".syncing")
    assert only_invoice(session).next_action_at is None
    update_app(session, app.id, AppDetails(type="custom_invoicing", name="Ours"), now=START)
    bill_until(session, START)
    assert only_invoice(session).status == "payment_processing.pending"


@pytest.mark.parametrize("hook", ["draft_sync_hook", "issuing_sync_hook"])
@pytest.mark.parametrize("by_default", [True, False])
def test_nor_do_those_that_are_made_while_the_hook_is_switched_off(
    engine: Engine, hook: str, by_default: bool
) -> None:
    with Session(engine) as session, session.begin():
        app = install_app(session, "custom_invoicing", now=START)
        setattr(app, hook, True)
        customer = signed_up(session)
        if by_default:
            get_profile(session, None).app_id = app.id
        else:
            billed_by(session, app, customer)
        app_id = app.id
    without = AppDetails(type="custom_invoicing", name="Ours")
    at_once(
        engine,
        lambda session: run_portion(session, now=START),
        lambda session: update_app(session, app_id, without, now=START),
    ).result()
    with Session(engine) as session:
        assert only_invoice(session).status == hook.replace("_sync_hook", ".syncing")
        bill_until(session, START)
        assert only_invoice(session).status == "payment_processing.pending"


# -- Uninstalling --------------------------------------------------------------------------------------------


def test_an_app_stays_while_a_profile_or_an_open_invoice_relies_on_it(session: Session) -> None:
    app = install_app(session, "custom_invoicing", now=START)
    customer = signed_up(session)
    profile_id = billed_by(session, app, customer)
    bill_until(session, START)
    invoice = only_invoice(session)
    with pytest.raises(AppInUseError, match="billing profiles"):
        uninstall_app(session, app.id, now=START)
    unpin_profile(session, customer.id, now=START)
    delete_profile(session, profile_id, now=START)
    with pytest.raises(AppInUseError, match="invoices"):
        uninstall_app(session, app.id, now=START)
    act(session, invoice.id, "paid", now=START)
    uninstall_app(session, app.id, now=START)
    assert (app.deleted_at, list_apps(session)[1]) == (START, 1)


def test_an_uninstalled_app_is_found_by_id_and_changes_no_more(session: Session) -> None:
    app = install_app(session, "custom_invoicing", now=START)
    uninstall_app(session, app.id, now=START)
    assert get_app(session, app.id).deleted_at == START
    for change in (
        lambda: uninstall_app(session, app.id, now=START),
        lambda: update_app(session, app.id, AppDetails(type="custom_invoicing", name="A"), now=START),
    ):
        with pytest.raises(InvalidError) as error:
            change()
        assert [issue.code for issue in error.value.issues] == ["app_uninstalled"]
    with pytest.raises(AppNotFoundError):
        uninstall_app(session, "01ARZ3NDEKTSV4RRFFQ69G5FAV", now=START)


def test_a_profile_is_not_made_of_an_app_while_that_is_uninstalled(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        app_id = install_app(session, "custom_invoicing", now=START).id
    apps = ProfileApps(tax=app_id, invoicing=app_id, payment=app_id)
    details = ProfileDetails(name="Own", supplier=Party(name="ACME"), workflow=Workflow())
    made = at_once(
        engine,
        lambda session: uninstall_app(session, app_id, now=START),
        lambda session: create_profile(session, details, apps=apps, now=START),
    )
    assert isinstance(made.exception(), InvalidError)


def test_a_voided_invoice_asks_nothing_of_its_app(session: Session) -> None:
    app = install_app(session, "custom_invoicing", now=START)
    customer = signed_up(session)
    profile_id = billed_by(session, app, customer)
    bill_until(session, START)
    void_invoice(session, only_invoice(session).id, VoidAction(type="discard"), reason="test", now=START)
    unpin_profile(session, customer.id, now=START)
    delete_profile(session, profile_id, now=START)
    uninstall_app(session, app.id, now=START)
    assert app.deleted_at == START


# -- What apps know of customers -----------------------------------------------------------------------------


def test_an_app_knows_of_a_customer_what_it_was_told_last(session: Session) -> None:
    customer, app = a_customer(session), install_app(session, "custom_invoicing", now=START)
    told = CustomerAppDetails(type="custom_invoicing", data={"no": "7"})
    sandbox = CustomerAppDetails(type="sandbox", app_id=SANDBOX)
    save_customer_apps(session, customer.id, [told, sandbox], now=START)
    again = CustomerAppDetails(type="custom_invoicing", app_id=app.id, data={"no": "8"})
    save_customer_apps(session, customer.id, [again], now=at("2026-02-01"))
    session.expire_all()
    found, count = list_customer_apps(session, customer.id)
    assert ([(one.app.type, one.data) for one in found], count) == (
        [("sandbox", {}), ("custom_invoicing", {"no": "8"})],
        2,
    )
    assert (found[1].created_at, found[1].updated_at) == (START, at("2026-02-01"))
    assert list_customer_apps(session, customer.id, app_type="sandbox")[1] == 1
    delete_customer_app(session, customer.id, app.id)
    with pytest.raises(CustomerAppNotFoundError):
        delete_customer_app(session, customer.id, app.id)
    uninstall_app(session, app.id, now=START)
    assert [one.app_id for one in list_customer_apps(session, customer.id)[0]] == [SANDBOX]


def test_which_app_is_meant_is_never_guessed(session: Session) -> None:
    customer = a_customer(session)
    gone = install_app(session, "custom_invoicing", now=START)
    uninstall_app(session, gone.id, now=START)

    def refused(app_id: str | None, app_type: AppType = "custom_invoicing") -> tuple[str, str]:
        wanted = CustomerAppDetails(type=app_type, app_id=app_id)
        with pytest.raises(InvalidError) as error:
            save_customer_apps(session, customer.id, [wanted], now=START)
        (issue,) = error.value.issues
        return issue.code, issue.field

    assert refused(None) == ("app_not_found", "$[0].type")
    assert refused(gone.id) == ("app_not_found", "$[0].id")
    assert refused("01ARZ3NDEKTSV4RRFFQ69G5FAV") == ("app_not_found", "$[0].id")
    for _ in range(2):
        install_app(session, "custom_invoicing", now=START)
    assert refused(None) == ("app_id_required", "$[0].id")
    assert refused(SANDBOX) == ("app_type_mismatch", "$[0].type")
    assert list_customer_apps(session, customer.id) == ([], 0)


def test_nothing_more_is_told_of_a_deleted_customer(session: Session) -> None:
    customer = a_customer(session)
    delete_customer(session, customer, now=START)
    with pytest.raises(ConflictError):
        save_customer_apps(session, customer.id, [], now=START)
