"""Every subscriptions operation of the official OpenMeter SDK, and what the API says to bad requests."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openmeter
import openmeter.models
import pytest
from corehttp.exceptions import HttpResponseError, ResourceNotFoundError

from tests.server import ADMIN_KEY, Server, assert_problem

models: Any = openmeter.models
"""Untyped here: the SDK's annotations know no billing cadence but a timedelta, which has no months."""

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def sdk(server: Server) -> Iterator[Any]:
    with openmeter.Client(endpoint=server.url, token=ADMIN_KEY) as client:
        yield client


@pytest.fixture(scope="module")
def today(sdk: Any) -> datetime:
    """When the server says that it is, to the second."""
    made: datetime = sdk.customers.create(models.CustomerCreate(name="clock", key="clock")).created_at
    return made.replace(microsecond=0)


def fee_card(amount: str = "10", key: str = "platform") -> Any:
    price = models.FlatPriceWithPaymentTerm(type="flat", amount=amount, payment_term="in_advance")
    return models.RateCardFlatFee(
        type="flat_fee", key=key, name=key, feature_key=None, billing_cadence="P1M", price=price
    )


def a_phase(key: str, *cards: Any, duration: str | None = None) -> Any:
    return models.PlanPhase(key=key, name=key, duration=duration, rate_cards=list(cards))


def a_plan(sdk: Any, key: str, *phases: Any) -> Any:
    wanted = models.PlanCreate(key=key, name=key, currency="USD", billing_cadence="P1M", phases=list(phases))
    return sdk.plans.publish(sdk.plans.create(wanted).id)


def signed(sdk: Any, key: str, *phases: Any, **more: Any) -> Any:
    """A customer, a plan and a subscription, all of that name."""
    a_plan(sdk, key, *(phases or (a_phase("main", fee_card()),)))
    customer = sdk.customers.create(models.CustomerCreate(name=key, key=key))
    plan = models.PlanReferenceInput(key=key)
    return sdk.subscriptions.create(models.PlanSubscriptionCreate(plan=plan, customer_id=customer.id, **more))


def edit_of(*customizations: Any, timing: datetime | str = "immediate") -> Any:
    return models.SubscriptionEdit(customizations=list(customizations), timing=timing)


def sold(sdk: Any, subscription: Any, at: datetime | None = None) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each phase with the key and the price of what it sells."""
    expanded = sdk.subscriptions.get_expanded(subscription.id, at=at)
    return [
        (
            each.key,
            [
                (item.key, item.price["amount"] if isinstance(item.price, dict) else item.price.amount)
                for item in each.items_property
            ],
        )
        for each in expanded.phases
    ]


def test_create_get_and_list(sdk: Any) -> None:
    made = signed(sdk, "listed", timing="immediate", metadata={"po": "7"})
    expanded = sdk.subscriptions.get_expanded(made.id)
    assert (expanded.id, expanded.status, expanded.metadata) == (made.id, "active", {"po": "7"})
    period = expanded.alignment.current_aligned_billing_period
    assert period.from_property == made.active_from < period.to
    (item,) = expanded.phases[0].items_property
    assert expanded.phases[0].item_timelines["platform"][0].id == item.id
    page = sdk.customers.list_customer_subscriptions("listed")
    assert [each["id"] for each in page["items"]] == [made.id]


def test_terms_of_ones_own(sdk: Any, today: datetime) -> None:
    sdk.customers.create(models.CustomerCreate(name="own", key="own"))
    terms = models.CustomPlanInput(
        name="Ours", currency="USD", billing_cadence="P1M", phases=[a_phase("only", fee_card("12"))]
    )
    made = sdk.subscriptions.create(models.CustomSubscriptionCreate(custom_plan=terms, customer_key="own"))
    assert (made.plan, made.name, made.status) == (None, "Ours", "active")
    assert sold(sdk, made) == [("only", [("platform", "12")])]
    changed = sdk.subscriptions.change(
        made.id, models.CustomSubscriptionChange(timing=today + DAY, custom_plan=terms)
    )
    assert (changed.current.status, changed.next.status, changed.next.plan) == ("canceled", "scheduled", None)


def test_cancel_and_unschedule(sdk: Any, today: datetime) -> None:
    made = signed(sdk, "leaving")
    canceled = sdk.subscriptions.cancel(made.id, {"timing": "next_billing_cycle"})
    assert (canceled.status, canceled.active_to) == (
        "canceled",
        sdk.subscriptions.get_expanded(made.id).phases[0].active_to,
    )
    again = sdk.subscriptions.unschedule_cancelation(made.id)
    assert (again.status, again.active_to) == ("active", None)
    end = today + DAY
    assert sdk.subscriptions.cancel(made.id, {"timing": end}).active_to == end
    sdk.subscriptions.unschedule_cancelation(made.id)
    assert sdk.subscriptions.cancel(made.id, {}).status == "inactive"
    with pytest.raises(HttpResponseError) as refused:
        sdk.subscriptions.cancel(made.id, {})
    assert refused.value.status_code == 403


def test_change_restore_and_delete(sdk: Any) -> None:
    made = signed(sdk, "growing")
    bigger = a_plan(sdk, "bigger", a_phase("main", fee_card("99")))
    wanted = models.PlanSubscriptionChange(
        timing="next_billing_cycle", plan=models.PlanReferenceInput(key="bigger"), name="Bigger"
    )
    changed = sdk.subscriptions.change(made.id, wanted)
    assert (changed.current.id, changed.current.status) == (made.id, "canceled")
    assert (changed.next.plan.id, changed.next.name, changed.next.status) == (
        bigger.id,
        "Bigger",
        "scheduled",
    )
    assert changed.next.active_from == changed.current.active_to
    assert changed.next.billing_anchor == made.billing_anchor
    assert sdk.subscriptions.restore(made.id).status == "active"
    with pytest.raises(ResourceNotFoundError):
        sdk.subscriptions.get_expanded(changed.next.id)
    following = sdk.subscriptions.change(made.id, wanted).next
    assert sdk.subscriptions.delete(following.id) is None
    with pytest.raises(HttpResponseError) as refused:
        sdk.subscriptions.delete(made.id)
    assert refused.value.status_code == 403


def test_migrate(sdk: Any) -> None:
    made = signed(sdk, "aging")
    newer = a_plan(sdk, "aging", a_phase("main", fee_card("11")))
    migrated = sdk.subscriptions.migrate(made.id, {"timing": "immediate", "targetVersion": 2})
    assert (migrated.current.status, migrated.next.status) == ("inactive", "active")
    assert (migrated.next.plan.id, migrated.next.plan.version) == (newer.id, 2)
    with pytest.raises(HttpResponseError) as refused:
        sdk.subscriptions.migrate(migrated.next.id, {})
    assert refused.value.status_code == 400


def test_edit_with_every_operation(sdk: Any, today: datetime) -> None:
    made = signed(
        sdk,
        "edited",
        a_phase("trial", fee_card("1"), duration="P14D"),
        a_phase("ramp", fee_card("5"), duration="P1M"),
        a_phase("full", fee_card("10")),
        timing=today - DAY,
    )
    edits = [
        models.EditSubscriptionAddItem(op="add_item", phase_key="trial", rate_card=fee_card("2")),
        models.EditSubscriptionAddItem(op="add_item", phase_key="full", rate_card=fee_card("3", "support")),
        models.EditSubscriptionRemoveItem(op="remove_item", phase_key="full", item_key="platform"),
        models.EditSubscriptionStretchPhase(op="stretch_phase", phase_key="trial", extend_by=7 * DAY),
        models.EditSubscriptionRemovePhase(op="remove_phase", phase_key="ramp", shift="next"),
        models.EditSubscriptionAddPhase(
            op="add_phase",
            phase=models.SubscriptionPhaseCreate(key="last", name="Last", start_after=timedelta(days=90)),
        ),
        models.EditSubscriptionAddItem(op="add_item", phase_key="last", rate_card=fee_card("50")),
    ]
    edited = sdk.subscriptions.edit(made.id, edit_of(*edits))
    assert edited.status == "active"
    assert sold(sdk, made) == [
        ("trial", [("platform", "2")]),
        ("full", [("support", "3")]),
        ("last", [("platform", "50")]),
    ]
    assert sold(sdk, made, at=made.active_from)[0] == ("trial", [("platform", "1")])
    found = sdk.subscriptions.get_expanded(made.id).phases
    starts = [(each.active_from - made.active_from).days for each in found]
    assert starts == [0, 21, 90]
    waiting = models.EditSubscriptionRemoveItem(op="remove_item", phase_key="trial", item_key="platform")
    sdk.subscriptions.edit(made.id, edit_of(waiting, timing=today + DAY))
    assert sold(sdk, made, at=today + 2 * DAY)[0] == ("trial", [])
    unscheduled = models.EditSubscriptionUnscheduleEdit(op="unschedule_edit")
    sdk.subscriptions.edit(made.id, edit_of(unscheduled))
    assert sold(sdk, made, at=today + 2 * DAY)[0] == ("trial", [("platform", "2")])


def test_addons(sdk: Any, today: datetime) -> None:
    made = signed(sdk, "adding")
    wanted = models.AddonCreate(
        key="more", name="More", currency="USD", instance_type="multiple", rate_cards=[fee_card("4")]
    )
    addon = sdk.addons.publish(sdk.addons.create(wanted).id)
    sdk.plan_addons.create(
        made.plan.id, models.PlanAddonCreate(addon_id=addon.id, from_plan_phase="main", max_quantity=5)
    )
    bought = sdk.subscription_addons.create(
        made.id,
        models.SubscriptionAddonCreate(
            name="More of it",
            quantity=2,
            timing="immediate",
            addon=models.SubscriptionAddonCreateAddon(id=addon.id),
        ),
    )
    assert (bought.name, bought.quantity, bought.subscription_id) == ("More of it", 2, made.id)
    assert (bought.addon.key, bought.addon.instance_type) == ("more", "multiple")
    (item,) = sdk.subscriptions.get_expanded(made.id).phases[0].items_property
    assert bought.rate_cards[0].affected_subscription_item_ids == [item.id]
    assert sold(sdk, made) == [("main", [("platform", "18")])]
    updated = sdk.subscription_addons.update(
        made.id, bought.id, models.SubscriptionAddonUpdate(quantity=0, timing=today + DAY, name="Less")
    )
    assert (updated.name, updated.quantity) == ("Less", 2)
    assert [each.quantity for each in updated.timeline] == [2, 0]
    assert updated.active_to == updated.timeline[1].active_from
    got = sdk.subscription_addons.get(made.id, bought.id)
    assert (got.id, got.timeline) == (bought.id, updated.timeline)
    assert [each.id for each in sdk.subscription_addons.list(made.id)] == [bought.id]
    with pytest.raises(HttpResponseError) as refused:
        sdk.subscriptions.edit(made.id, edit_of())
    assert refused.value.status_code == 403


# -- What is bad ---------------------------------------------------------------------------------------------

NO_PHASE = {"op": "remove_item", "phaseKey": "nowhere", "itemKey": "platform"}
NAMELESS = {"type": "flat_fee", "key": "x"}
BAD_EDITS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "field_required", "$.customizations"),
    ({"customizations": [NO_PHASE] * 101}, "too_long", "$.customizations"),
    ({"customizations": [NO_PHASE]}, "unknown_phase", "$.customizations[0].phaseKey"),
    ({"customizations": [{"op": "explode"}]}, "literal_error", "$.customizations[0].op"),
    ({"customizations": [{"op": "remove_item"}]}, "field_required", "$.customizations[0].phaseKey"),
    (
        {"customizations": [{"op": "remove_phase", "phaseKey": "main", "shift": "up"}]},
        "literal_error",
        "$.customizations[0].shift",
    ),
    (
        {
            "customizations": [
                {"op": "add_item", "phaseKey": "main", "rateCard": {"type": "flat_fee", "key": "x"}}
            ]
        },
        "field_required",
        "$.customizations[0].rateCard.name",
    ),
    (
        {"customizations": [{"op": "unschedule_edit", "what": 1}]},
        "unknown_field",
        "$.customizations[0].what",
    ),
    ({"customizations": [], "timing": "2020-01-01T00:00:00Z"}, "timing_in_the_past", "$.timing"),
    ({"customizations": [], "timing": "someday"}, "", "$.timing"),
]


def test_a_bad_edit_says_where_and_why_and_changes_nothing(sdk: Any, client: httpx.Client) -> None:
    made = signed(sdk, "sturdy")
    path = f"/api/v1/subscriptions/{made.id}"
    before = client.get(path).json()
    for body, code, field in BAD_EDITS:
        found = assert_problem(client.patch(path, json=body), 400)
        issues = found["extensions"]["validationErrors"]
        assert field in [issue["field"] for issue in issues], (body, issues)
        assert not code or code in [issue["code"] for issue in issues], (body, issues)
    after = client.get(path).json()
    assert (after["phases"], after["updatedAt"]) == (before["phases"], before["updatedAt"])


SOLD: dict[str, Any] = {"plan": {"key": "sold"}}
EMPTY: dict[str, Any] = {"key": "a", "name": "a", "duration": None, "rateCards": []}
BAD_PURCHASES: list[tuple[dict[str, Any], str, str]] = [
    ({"quantity": -1}, "greater_than_equal", "$.quantity"),
    ({"quantity": 0}, "field_must_be_positive", "$.quantity"),
    ({"timing": "2020-01-01T00:00:00Z"}, "timing_in_the_past", "$.timing"),
    ({"timing": None}, "", "$.timing"),
    ({"addon": {"id": "unknown"}}, "addon_not_offered", "$.addon.id"),
    ({"addon": {}}, "field_required", "$.addon.id"),
    ({"price": 1}, "unknown_field", "$.price"),
]


def test_a_bad_purchase_says_where_and_why_and_sells_nothing(sdk: Any, client: httpx.Client) -> None:
    made = signed(sdk, "frugal")
    wanted = models.AddonCreate(
        key="frugal", name="x", currency="USD", instance_type="single", rate_cards=[fee_card("4")]
    )
    addon = sdk.addons.publish(sdk.addons.create(wanted).id)
    sdk.plan_addons.create(made.plan.id, models.PlanAddonCreate(addon_id=addon.id, from_plan_phase="main"))
    good = {"name": "x", "quantity": 1, "timing": "immediate", "addon": {"id": addon.id}}
    path = f"/api/v1/subscriptions/{made.id}/addons"
    for wrong, code, field in BAD_PURCHASES:
        found = assert_problem(client.post(path, json={**good, **wrong}), 400)
        issues = found["extensions"]["validationErrors"]
        assert field in [issue["field"] for issue in issues], (wrong, issues)
        assert not code or code in [issue["code"] for issue in issues], (wrong, issues)
    assert client.get(path).json() == []
    assert client.post(path, json=good).status_code == 201
    assert_problem(client.post(path, json=good), 409, "addon_already_attached", "$.addon.id")
    assert sold(sdk, made) == [("main", [("platform", "14")])]


BAD_CHANGES: list[tuple[str, dict[str, Any], str, str]] = [
    ("cancel", {"timing": "1999-01-01T00:00:00Z"}, "timing_before_start", "$.timing"),
    ("cancel", {"when": "now"}, "unknown_field", "$.when"),
    ("change", {"plan": {"key": "steady"}}, "field_required", "$.timing"),
    ("change", {"timing": "immediate"}, "field_required", "$.plan"),
    ("migrate", {}, "plan_version_not_newer", "$.targetVersion"),
    ("migrate", {"targetVersion": 0}, "greater_than_equal", "$.targetVersion"),
]


def test_a_bad_change_says_where_and_why_and_changes_nothing(sdk: Any, client: httpx.Client) -> None:
    made = signed(sdk, "steady")
    path = f"/api/v1/subscriptions/{made.id}"
    before = client.get(path).json()
    for action, body, code, field in BAD_CHANGES:
        assert_problem(client.post(f"{path}/{action}", json=body), 400, code, field)
    unknown = {"timing": "immediate", "plan": {"key": "nothing"}}
    assert_problem(client.post(f"{path}/change", json=unknown), 404)
    assert client.get(path).json()["phases"] == before["phases"]
    assert client.get(f"/api/v1/customers/{made.customer_id}/subscriptions").json()["totalCount"] == 1


BAD_SIGN_UPS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "field_required", "$.plan"),
    (SOLD | {"customPlan": {"x": 1}}, "unknown_field", "$.customPlan.x"),
    (SOLD | {"timing": "next_billing_cycle"}, "subscription_billing_anchor_is_required", "$.timing"),
    (SOLD | {"timing": "1999-01-01T00:00:00Z"}, "too_long_ago", "$.timing"),
    (SOLD | {"startingPhase": "none"}, "unknown_phase", "$.startingPhase"),
]


def test_a_bad_sign_up_says_where_and_why_and_leaves_nothing(sdk: Any, client: httpx.Client) -> None:
    a_plan(sdk, "sold", a_phase("main", fee_card()))
    customer = sdk.customers.create(models.CustomerCreate(name="new", key="new"))
    for body, code, field in BAD_SIGN_UPS:
        answer = client.post("/api/v1/subscriptions", json={"customerId": customer.id, **body})
        assert_problem(answer, 400, code, field)
    custom = {"name": "x", "billingCadence": "P1M", "phases": [EMPTY]}
    both = {**SOLD, "customPlan": custom, "customerId": customer.id}
    assert_problem(client.post("/api/v1/subscriptions", json=both), 400, "unknown_field", "$.customPlan")
    del both["plan"]
    bad = assert_problem(client.post("/api/v1/subscriptions", json=both), 400)
    assert bad["extensions"]["validationErrors"][0]["field"] == "$.customPlan.phases[0].rateCards"
    assert client.get(f"/api/v1/customers/{customer.id}/subscriptions").json()["totalCount"] == 0


def test_an_anchor_says_when_the_next_billing_cycle_begins(sdk: Any, today: datetime) -> None:
    anchor = datetime(2026, 1, 1, tzinfo=UTC)
    made = signed(sdk, "anchored", timing="next_billing_cycle", billing_anchor=anchor)
    assert (made.active_from.day, made.active_from.hour, made.status) == (1, 0, "scheduled")
    assert made.active_from > today
    assert made.billing_anchor == anchor


def test_the_second_subscription_is_a_conflict(sdk: Any, client: httpx.Client) -> None:
    made = signed(sdk, "single")
    body = {"plan": {"key": "single"}, "customerId": made.customer_id}
    code = "only_single_subscription_allowed_per_customer_at_a_time"
    assert_problem(client.post("/api/v1/subscriptions", json=body), 409, code, "$.customerId")


def test_what_does_not_exist_is_not_found(client: httpx.Client) -> None:
    path = "/api/v1/subscriptions/01ARZ3NDEKTSV4RRFFQ69G5FAV"
    assert_problem(client.get(path), 404)
    assert_problem(client.delete(path), 404)
    assert_problem(client.patch(path, json={"customizations": []}), 404)
    for action in ("cancel", "migrate", "restore", "unschedule-cancelation"):
        assert_problem(
            client.post(f"{path}/{action}", json={} if action in ("cancel", "migrate") else None), 404
        )
    assert_problem(client.get(f"{path}/addons"), 404)
    assert_problem(client.get(f"{path}/addons/01ARZ3NDEKTSV4RRFFQ69G5FAV"), 404)
