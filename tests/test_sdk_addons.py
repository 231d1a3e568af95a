"""The official OpenMeter SDK runs every operation of add-ons and plan add-ons, and gets back what it sent."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import openmeter
import openmeter.models
import pytest
from corehttp.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError

from tests.server import ADMIN_KEY, Server

models: Any = openmeter.models
"""Untyped here: the SDK's annotations know no billing cadence but a timedelta, which has no months."""

_numbers = count(1)


@pytest.fixture(scope="module")
def sdk(server: Server) -> Iterator[Any]:
    with openmeter.Client(endpoint=server.url, token=ADMIN_KEY) as client:
        yield client


def key(stem: str) -> str:
    """Unlike any other in this module's database."""
    return f"{stem}_{next(_numbers)}"


def flat(amount: str, card_key: str = "seat", *, term: str = "in_advance") -> Any:
    price = models.FlatPriceWithPaymentTerm(type="flat", amount=amount, payment_term=term)
    return models.RateCardFlatFee(
        type="flat_fee", key=card_key, name="Seat", billing_cadence="P1M", price=price
    )


def wanted(addon_key: str, *, cards: list[Any] | None = None, **changes: object) -> Any:
    usual = {"key": addon_key, "name": "Seats", "instance_type": "single", "currency": "USD"}
    cards = [flat("5")] if cards is None else cards
    return models.AddonCreate(**{**usual, **changes}, rate_cards=cards)


def published(sdk: Any, stem: str = "seats", **changes: Any) -> Any:
    return sdk.addons.publish(sdk.addons.create(wanted(key(stem), **changes)).id)


def a_draft(sdk: Any, *cards: object) -> Any:
    phases = [
        models.PlanPhase(key="trial", name="Trial", duration="P1M", rate_cards=[flat("0")]),
        models.PlanPhase(key="main", name="Main", duration=None, rate_cards=list(cards) or [flat("49")]),
    ]
    plan_key = key("plan")
    return sdk.plans.create(
        models.PlanCreate(key=plan_key, name="Plan", currency="USD", billing_cadence="P1M", phases=phases)
    )


def offers(sdk: Any, plan: str, **question: object) -> list[Any]:
    """The plan's add-ons; the SDK hands out these in pages."""
    return list(sdk.plan_addons.list(plan, **question).items_property)


def refused(call: Any, *arguments: object) -> list[tuple[str, str]]:
    """The codes and places of what a 400 says."""
    with pytest.raises(HttpResponseError) as error:
        call(*arguments)
    assert error.value.status_code == 400
    answer: Any = error.value.response
    return [(found["code"], found["field"]) for found in answer.json()["extensions"]["validationErrors"]]


def as_json(card: Any) -> Any:
    return card.as_dict() if hasattr(card, "as_dict") else dict(card)


def test_an_addon_comes_back_as_it_was_sent(sdk: Any) -> None:
    name = key("seats")
    sent = wanted(
        name,
        cards=[flat("5.50")],
        description="One more",
        metadata={"tier": "2"},
        instance_type="multiple",
        currency="EUR",
    )
    made = sdk.addons.create(sent)
    for field in ("key", "name", "description", "instance_type", "currency"):
        assert getattr(made, field) == getattr(sent, field)
    assert dict(made.metadata) == {"tier": "2"}
    assert [as_json(card) for card in made.rate_cards] == [as_json(card) for card in sent.rate_cards]
    assert (made.version, made.status, made.validation_errors) == (1, "draft", [])
    assert (made.effective_from, made.effective_to, made.deleted_at) == (None, None, None)
    assert sdk.addons.get(made.id) == sdk.addons.get(name, include_latest=True) == made


def test_an_addon_lives_from_draft_to_archive(sdk: Any) -> None:
    name = key("seats")
    draft = sdk.addons.create(wanted(name))
    with pytest.raises(ResourceExistsError):
        sdk.addons.create(wanted(name))
    with pytest.raises(ResourceNotFoundError):
        sdk.addons.get(name)
    change = models.AddonReplaceUpdate(name="More", instance_type="multiple", rate_cards=[flat("7")])
    changed = sdk.addons.update(draft.id, change)
    assert (changed.name, changed.instance_type, changed.rate_cards[0]["price"]["amount"]) == (
        "More",
        "multiple",
        "7",
    )
    active = sdk.addons.publish(draft.id)
    assert (active.status, active.effective_from, active.effective_to) == ("active", active.updated_at, None)
    assert sdk.addons.get(name) == active
    assert refused(sdk.addons.update, draft.id, change) == [("addon_invalid_status", "$.status")]
    assert refused(sdk.addons.publish, draft.id) == [("addon_invalid_status_for_publish", "$.status")]
    assert refused(sdk.addons.delete, draft.id) == [("addon_invalid_status", "$.status")]

    second = sdk.addons.publish(sdk.addons.create(wanted(name)).id)
    first = sdk.addons.get(draft.id)
    assert (first.status, first.effective_to, second.version) == ("archived", second.effective_from, 2)
    archived = sdk.addons.archive(second.id)
    assert (archived.status, archived.effective_to) == ("archived", archived.updated_at)
    assert refused(sdk.addons.archive, second.id) == [("addon_invalid_status", "$.status")]

    assert sdk.addons.delete(first.id) is None
    assert [addon.id for addon in sdk.addons.list(key=[name])] == [second.id]
    assert [addon.id for addon in sdk.addons.list(key=[name], include_deleted=True)] == [first.id, second.id]
    assert sdk.addons.get(first.id).deleted_at is not None
    with pytest.raises(ResourceNotFoundError):
        sdk.addons.delete(first.id)


def test_a_draft_keeps_its_warnings_and_is_not_published_with_them(sdk: Any) -> None:
    draft = sdk.addons.create(wanted(key("empty"), cards=[]))
    (error,) = draft.validation_errors
    assert (error.code, error.field) == ("addon_has_no_rate_cards", "$.rateCards")
    assert error.attributes["severity"] == "warning"
    assert refused(sdk.addons.publish, draft.id) == [("addon_has_no_rate_cards", "$.rateCards")]
    assert sdk.addons.get(draft.id) == draft


def test_addons_are_listed_by_every_filter(sdk: Any) -> None:
    name, other = key("listed"), key("listed")
    old, new = (sdk.addons.publish(sdk.addons.create(wanted(name)).id).id for _ in range(2))
    draft = sdk.addons.create(wanted(name)).id
    swiss = sdk.addons.create(wanted(other, currency="CHF")).id

    def ids(**question: object) -> list[str]:
        return [addon.id for addon in sdk.addons.list(**question)]

    assert ids(key=[name, other]) == [old, new, draft, swiss]
    assert ids(id=[old, swiss]) == [old, swiss]
    assert ids(key=[name], status=["active", "draft"]) == [new, draft]
    assert ids(currency=["CHF"]) == [swiss]
    assert ids(key_version={name: [1, 3], other: [2]}) == [old, draft]
    assert ids(key=[name], order_by="version", order="DESC") == [draft, new, old]
    assert ids(key=[name], page_size=2) == [old, new]
    assert ids(key=[name], page=2, page_size=2) == [draft]


def test_a_plan_offers_addons(sdk: Any) -> None:
    plan, addon = a_draft(sdk), published(sdk, instance_type="multiple")
    sent = models.PlanAddonCreate(
        addon_id=addon.id, from_plan_phase="main", max_quantity=5, metadata={"shelf": "top"}
    )
    made = sdk.plan_addons.create(plan.id, sent)
    assert (made.from_plan_phase, made.max_quantity, dict(made.metadata)) == ("main", 5, {"shelf": "top"})
    assert (made.addon, made.validation_errors, made.deleted_at) == (addon, [], None)
    with pytest.raises(ResourceExistsError):
        sdk.plan_addons.create(plan.id, sent)
    assert sdk.plan_addons.get(plan.id, addon.id) == sdk.plan_addons.get(plan.id, addon.key) == made
    change = models.PlanAddonReplaceUpdate(from_plan_phase="trial", max_quantity=7)
    changed = sdk.plan_addons.update(plan.id, addon.id, change)
    assert (changed.from_plan_phase, changed.max_quantity, changed.metadata) == ("trial", 7, None)
    assert changed.created_at == made.created_at
    assert sdk.plan_addons.get(plan.id, addon.id) == changed
    assert offers(sdk, plan.id) == [changed]
    assert sdk.plan_addons.delete(plan.id, addon.id) is None
    assert offers(sdk, plan.id) == []
    (deleted,) = offers(sdk, plan.id, include_deleted=True)
    assert (deleted.addon.id, deleted.deleted_at is not None) == (addon.id, True)
    with pytest.raises(ResourceNotFoundError):
        sdk.plan_addons.get(plan.id, addon.id)
    with pytest.raises(ResourceNotFoundError):
        offers(sdk, key("unknown"))


def test_plan_addons_are_listed_by_every_filter(sdk: Any) -> None:
    plan = a_draft(sdk)
    first, second = published(sdk), published(sdk)
    for addon in (second, first):
        sdk.plan_addons.create(plan.id, models.PlanAddonCreate(addon_id=addon.id, from_plan_phase="main"))

    def ids(**question: object) -> list[str]:
        return [offered.addon.id for offered in offers(sdk, plan.key, **question)]

    with pytest.raises(ResourceNotFoundError):
        offers(sdk, first.id)
    assert ids() == [first.id, second.id]
    assert ids(order_by="created_at") == [second.id, first.id]
    assert ids(order_by="key", order="DESC") == [second.id, first.id]
    assert ids(id=[second.id]) == ids(key=[second.key]) == [second.id]
    assert ids(key_version={first.key: [1], second.key: [2]}) == [first.id]
    assert ids(page=2, page_size=1) == [second.id]


def test_a_plan_is_published_once_all_that_it_offers_fits(sdk: Any) -> None:
    plan, addon = a_draft(sdk, flat("49", term="in_arrears")), published(sdk)
    sent = models.PlanAddonCreate(addon_id=addon.id, from_plan_phase="main")
    made = sdk.plan_addons.create(plan.id, sent)
    (error,) = made.validation_errors
    assert (error.code, error.field) == (
        "rate_card_price_payment_term_mismatch",
        "$.addon.rateCards[0].price.paymentTerm",
    )
    assert error.attributes["hint"] == "Set it to in_arrears."
    assert refused(sdk.plans.publish, plan.id) == [("plan_has_incompatible_addon", "$")]
    kept = sdk.plans.get(plan.id)
    assert (kept.status, [error.code for error in kept.validation_errors]) == (
        "draft",
        ["plan_has_incompatible_addon"],
    )
    sdk.plan_addons.delete(plan.id, addon.id)
    assert sdk.plans.publish(plan.id).status == "active"
    assert refused(sdk.plan_addons.create, plan.id, sent) == [(error.code, error.field)]
    assert offers(sdk, plan.id) == []


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"key": ""}, "addon_key_empty", "$.key"),
        ({"key": "Seats"}, "invalid_key", "$.key"),
        ({"instanceType": "many"}, "addon_invalid_instance_type", "$.instanceType"),
        ({"currency": "XXX"}, "currency_invalid", "$.currency"),
        ({"color": "red"}, "unknown_field", "$.color"),
    ],
)
def test_what_is_wrong_has_its_code_and_its_place(
    client: httpx.Client, body: dict[str, object], code: str, field: str
) -> None:
    good = {"key": key("seats"), "name": "Seats", "instanceType": "single", "rateCards": []}
    answer = client.post("/api/v1/addons", json=good | body)
    (error,) = answer.json()["extensions"]["validationErrors"]
    assert (answer.status_code, error["code"], error["field"]) == (400, code, field)
    assert error["hint"]


@pytest.mark.parametrize("path", ["addons", "plans/{plan}/addons"])
def test_versions_are_asked_for_as_openmeter_documents_it(sdk: Any, client: httpx.Client, path: str) -> None:
    name, plan = key("versions"), a_draft(sdk)
    made = [sdk.addons.publish(sdk.addons.create(wanted(name)).id) for _ in range(3)]
    if "plan" in path:
        made = [sdk.addons.publish(sdk.addons.create(wanted(name)).id)]
        sdk.plan_addons.create(plan.id, models.PlanAddonCreate(addon_id=made[0].id, from_plan_phase="main"))

    def count_of(**question: object) -> int:
        answer = client.get(f"/api/v1/{path.format(plan=plan.id)}", params=question)  # type: ignore[arg-type]
        return int(answer.raise_for_status().json()["totalCount"])

    versions = [addon.version for addon in made]
    assert count_of(**{f"keyVersion[{name}]": versions}) == len(versions)
    assert count_of(**{f"keyVersion[{name}]": f"{versions[0]},999"}) == 1
    assert count_of(**{f"keyVersion[{name}]": 999}) == 0
    for bad in ({f"keyVersion[{name}]": "new"}, {"keyVersion": "1"}, {"keyVersion": "[1"}, {"id[x]": "1"}):
        answer = client.get(f"/api/v1/{path.format(plan=plan.id)}", params=bad)
        assert answer.status_code == 400
