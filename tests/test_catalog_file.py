"""The catalog as a file: what applying it does, what it says before, and that doing it twice does nothing."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from api import catalog_commands
from api.catalog_changes import Change, Changes, change_catalog
from api.catalog_difference import differences
from api.catalog_export import export_catalog
from api.catalog_file import CatalogFileError, read_catalog
from api.cli import app
from catalog.addons import get_addon
from catalog.features import archive_feature, create_feature, get_feature
from catalog.plan_addons import get_plan_addon
from catalog.plans import Plan, get_plan, next_plan, update_plan
from metering.errors import InvalidError
from tests.builders import a_draft, a_meter, a_plan, at_once, fee, phase
from tests.server import ROOT, environment_of, refusal

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
LATER = datetime(2026, 3, 16, 12, tzinfo=UTC)

EVERYTHING = """\
features:
  - {key: cost, name: Cost, meterSlug: tokens, metadata: {team: no, "quoted: \\u0022": '~'}}
  - key: gpt
    name: GPT ⌁ "4"
    meterSlug: tokens
    meterGroupByFilters: {model: gpt-4o}
    unitCost: {type: manual, amount: 0.0000000000000000000000000001}
  - key: others
    name: Others
    meterSlug: tokens
    advancedMeterGroupByFilters:
      model: {$nin: [gpt-4o, "1e3"], $or: [{$like: 'gpt\\%_%'}, {$and: [{$gte: a}, {$ne: ""}]}]}
    unitCost: {type: llm, providerProperty: provider, model: gpt-4o, tokenTypeProperty: type}
  - {key: login, name: Login}
  - {key: sso, name: SSO}
  - {key: tokens, name: Tokens, meterSlug: tokens}
  - {key: usage, name: Usage, meterSlug: tokens}
  - {key: value, name: Value, meterSlug: tokens}
addons:
  - key: extra
    name: Extra
    description: |
      Two lines,
      the second one.
    currency: EUR
    instanceType: single
    rateCards:
      - type: flat_fee
        key: login
        name: Login
        featureKey: login
        billingCadence: P1M
        entitlementTemplate: {type: boolean}
  - key: seats
    name: Seats
    currency: EUR
    instanceType: multiple
    rateCards:
      - type: flat_fee
        key: fee
        name: Fee
        billingCadence: P1M
        price: {type: flat, amount: 8.10, paymentTerm: in_arrears}
plans:
  - key: pro
    name: Pro
    description: 0x10
    metadata: {}
    currency: EUR
    billingCadence: P1M
    proRatingConfig: {enabled: false}
    alignment: {billablesMustAlign: true}
    settlementMode: credit_then_invoice
    phases:
      - {key: trial, name: Trial, duration: P14D, rateCards: [{type: flat_fee, key: hello, name: Hello}]}
      - key: main
        name: Main
        metadata: {a: b}
        rateCards:
          - type: flat_fee
            key: fee
            name: Fee
            billingCadence: P1M
            price: {type: flat, amount: 1e2, paymentTerm: in_arrears}
            discounts: {percentage: {percentage: 12.5}}
            taxConfig: {behavior: inclusive, stripe: {code: txcd_10000000}}
          - type: flat_fee
            key: sso
            name: SSO
            featureKey: sso
            billingCadence: P1M
            entitlementTemplate: {type: static, config: '{"a": [1, null]}'}
          - type: usage_based
            key: tokens
            name: Unit
            featureKey: tokens
            billingCadence: P1M
            price: {type: unit, amount: 0.00000075, minimumAmount: 1, maximumAmount: 2000}
            discounts: {usage: {quantity: 1000.50}}
            unitConfig:
              {operation: divide, conversionFactor: 1000, rounding: half_up, precision: 2, displayUnit: kT}
            entitlementTemplate:
              {type: metered, isSoftLimit: true, issueAfterReset: 1000.5, issueAfterResetPriority: 3,
               preserveOverageAtReset: true, usagePeriod: P1D, metadata: {x: y}}
          - type: usage_based
            key: gpt
            name: Tiers
            featureKey: gpt
            billingCadence: P1M
            price:
              type: tiered
              mode: graduated
              groupBy: [provider]
              tiers:
                - {upToAmount: 5, flatPrice: {type: flat, amount: 100}}
                - {unitPrice: {type: unit, amount: 1.123456789012345678901234567890}}
          - {type: usage_based, key: others, name: Package, featureKey: others, billingCadence: P1M,
             price: {type: package, amount: 15, quantityPerPackage: 10}}
          - {type: usage_based, key: cost, name: Dynamic, featureKey: cost, billingCadence: P1M,
             price: {type: dynamic, multiplier: 1.2}}
          - {type: usage_based, key: value, name: Percentage, featureKey: value, billingCadence: P1M,
             price: {type: percentage, percentage: 2.9, fixedAmount: 0.30, minimumPerEvent: 0.5}}
          - type: usage_based
            key: usage
            name: Matrix
            featureKey: usage
            billingCadence: P1M
            price:
              type: matrix
              dimensions: [model, type]
              cells: [{values: {model: gpt-4o, type: "no"}, amount: 0.01}]
              defaultAmount: 0.1
    addons:
      - {key: seats, fromPlanPhase: main, maxQuantity: 5, metadata: {shown: yes}}
      - {key: extra, fromPlanPhase: trial}
  - key: volume
    name: Volume
    billingCadence: P1Y
    phases:
      - key: main
        name: Main
        rateCards:
          - type: usage_based
            key: tokens
            name: Tokens
            featureKey: tokens
            billingCadence: P1M
            price: {type: tiered, mode: volume, tiers: [{unitPrice: {type: unit, amount: 0}}]}
"""
SMALL = """\
features:
  - {key: tokens, name: Tokens, meterSlug: tokens, unitCost: {type: manual, amount: 0.1}}
addons:
  - key: seats
    name: Seats
    instanceType: multiple
    rateCards: [{type: flat_fee, key: seat, name: Seat, billingCadence: P1M, price: {type: flat, amount: 8}}]
plans:
  - key: pro
    name: Pro
    billingCadence: P1M
    phases:
      - key: main
        name: Main
        rateCards:
          - {type: flat_fee, key: fee, name: Fee, billingCadence: P1M, price: {type: flat, amount: 10}}
          - type: usage_based
            key: tokens
            name: Tokens
            featureKey: tokens
            billingCadence: P1M
            price: {type: unit, amount: 0.1}
    addons: [{key: seats, fromPlanPhase: main, maxQuantity: 3}]
"""


class Files:
    """Applies files to one session, one after the other."""

    def __init__(self, session: Session, path: Path) -> None:
        self.session, self.path = session, path

    def apply(self, content: str, *, prune: bool = False, now: datetime = NOW) -> tuple[Change, ...]:
        return self.changes(content, prune=prune, now=now).changes

    def changes(self, content: str, *, prune: bool = False, now: datetime = NOW) -> Changes:
        self.path.write_text(content, encoding="utf-8")
        return change_catalog(self.session, read_catalog(self.path), prune=prune, now=now)

    def problems(self, content: str) -> list[str]:
        """A line for each, without the file's name."""
        with pytest.raises(CatalogFileError) as caught, self.session.begin_nested():
            self.changes(content)
        first, *more = caught.value.detail.splitlines()
        assert first.startswith(str(self.path))
        assert len(caught.value.issues) == max(1, len(more))
        return [line.strip() for line in more] or [first.removeprefix(f"{self.path}, ")]


@pytest.fixture
def files(session: Session, tmp_path: Path) -> Files:
    a_meter(session)
    return Files(session, tmp_path / "catalog.yaml")


def said(changes: tuple[Change, ...]) -> list[str]:
    return [f"{one.sign} {one.what}{': ' if one.how else ''}{one.how}" for one in changes]


# -- Applied, and applied again ------------------------------------------------------------------------------


def test_a_file_with_everything_makes_all_of_it_and_twice_nothing(files: Files) -> None:
    changes = files.apply(EVERYTHING)
    assert len(changes) == 8 + 2 + 2
    assert {change.sign for change in changes} == {"+"}
    assert files.apply(EVERYTHING, now=LATER) == ()
    assert files.apply(EVERYTHING, prune=True, now=LATER) == ()
    plan = get_plan(files.session, "pro")
    assert (plan.version, plan.status(NOW), plan.currency, plan.pro_rating) == (1, "active", "EUR", False)
    assert get_plan_addon(files.session, plan.id, "seats").max_quantity == 5
    assert get_feature(files.session, "cost").metadata_ == {"team": "no", 'quoted: "': "~"}


def test_what_is_exported_changes_nothing_when_applied(files: Files) -> None:
    files.apply(EVERYTHING)
    exported = export_catalog(files.session, now=LATER)
    assert files.apply(exported, prune=True, now=LATER) == ()
    assert export_catalog(files.session, now=LATER) == exported


def test_a_round_trip_through_a_fresh_database_gives_the_same_file(
    files: Files, engine: Engine, tmp_path: Path
) -> None:
    files.apply(EVERYTHING)
    exported = export_catalog(files.session, now=NOW)
    with Session(engine) as session:
        a_meter(session)
        fresh = Files(session, tmp_path / "fresh.yaml")
        assert len(fresh.apply(exported)) == 12
        assert export_catalog(session, now=NOW) == exported


def test_exported_numbers_are_exact_and_quoted(files: Files) -> None:
    files.apply(EVERYTHING)
    exported = export_catalog(files.session, now=NOW)
    for number in (
        "'0.0000000000000000000000000001'",
        "'0.00000075'",
        "'1.12345678901234567890123456789'",
        "'100'",
        "'12.5'",
        "'8.1'",
    ):
        assert number in exported
    assert not re.search(r"[aA]mount: [^'\n]", exported)


def test_an_export_has_no_defaults_and_no_drafts(files: Files) -> None:
    a_plan(files.session, phase(fee()), key="basic")
    a_draft(files.session, key="secret")
    expected = """\
features: []
addons: []
plans:
- key: basic
  name: Basic
  currency: USD
  billingCadence: P1M
  phases:
  - key: main
    name: main
    rateCards:
    - type: flat_fee
      key: seat
      name: seat
      billingCadence: P1M
      price:
        type: flat
        amount: '10'
"""
    assert export_catalog(files.session, now=NOW) == expected


# -- What changes, and what is said of it --------------------------------------------------------------------


def test_a_new_price_is_the_plans_next_version(files: Files) -> None:
    files.apply(SMALL)
    (change,) = files.apply(
        SMALL.replace("price: {type: unit, amount: 0.1}", "price: {type: unit, amount: 0.2}")
    )
    assert said((change,)) == ["~ plan pro: version 1 -> 2"]
    assert change.lines == ("phases[0].rateCards[1].price.amount: 0.1 -> 0.2",)
    plan = get_plan(files.session, "pro")
    assert plan.version == 2
    assert get_plan_addon(files.session, plan.id, "seats").max_quantity == 3
    assert get_plan(files.session, "pro", version=1).status(NOW) == "archived"


def test_what_a_plan_offers_is_part_of_it(files: Files) -> None:
    files.apply(SMALL)
    (change,) = files.apply(SMALL.replace("maxQuantity: 3", "maxQuantity: 4"))
    assert (said((change,)), change.lines) == (
        ["~ plan pro: version 1 -> 2"],
        ("addons[0].maxQuantity: 3 -> 4",),
    )
    (change,) = files.apply(re.sub(r"    addons: .*\n", "", SMALL))
    assert change.lines == ('- addons[0]: {"key": "seats", "fromPlanPhase": "main", "maxQuantity": 4}',)


def test_a_unit_cost_changes_in_place(files: Files) -> None:
    files.apply(SMALL)
    before = get_feature(files.session, "tokens").id
    (change,) = files.apply(SMALL.replace("{type: manual, amount: 0.1}", "{type: manual, amount: 0.3}"))
    assert (change.sign, change.what, change.lines) == (
        "~",
        "feature tokens",
        ("unitCost.amount: 0.1 -> 0.3",),
    )
    (change,) = files.apply(SMALL.replace(", unitCost: {type: manual, amount: 0.1}", ""))
    assert change.lines == ('- unitCost: {"type": "manual", "amount": "0.3"}',)
    feature = get_feature(files.session, "tokens")
    assert (feature.id, feature.unit_cost) == (before, None)


def test_a_feature_that_is_replaced_takes_its_plans_along(files: Files) -> None:
    files.apply(SMALL)
    before = get_feature(files.session, "tokens")
    feature, plan = files.apply(SMALL.replace("name: Tokens, meterSlug", "name: Words, meterSlug"))
    assert said((feature,))[0].startswith("~ feature tokens: archived and replaced; plans and add-ons that")
    assert feature.lines == ("name: Tokens -> Words",)
    assert (said((plan,)), plan.lines) == (
        ["~ plan pro: version 1 -> 2"],
        ("because the feature tokens was replaced",),
    )
    after = get_feature(files.session, "tokens")
    assert before.archived_at == NOW
    assert get_plan(files.session, "pro").feature_ids == {"tokens": after.id}
    assert get_plan(files.session, "pro", version=1).feature_ids == {"tokens": before.id}


def test_an_addon_with_a_new_version_takes_its_plans_along(files: Files) -> None:
    files.apply(SMALL)
    changed = SMALL.replace("amount: 8", "amount: 9")
    addon, plan = files.apply(changed)
    assert (said((addon,)), addon.lines) == (
        ["~ add-on seats: version 1 -> 2"],
        ("rateCards[0].price.amount: 8 -> 9",),
    )
    assert (said((plan,)), plan.lines) == (
        ["~ plan pro: version 1 -> 2"],
        ("because the add-on seats has version 2 now",),
    )
    offer = get_plan_addon(files.session, get_plan(files.session, "pro").id, "seats")
    assert offer.addon_id == get_addon(files.session, "seats").id
    assert files.apply(changed, now=LATER) == ()


def test_an_addon_that_was_published_elsewhere_is_no_longer_exported_as_offered(files: Files) -> None:
    files.apply(SMALL)
    only = re.sub(r"(?s)plans:.*", "", SMALL).replace("amount: 8", "amount: 9")
    assert said(files.apply(only)) == ["~ add-on seats: version 1 -> 2"]
    exported = export_catalog(files.session, now=NOW)
    assert "fromPlanPhase" not in exported
    assert files.apply(exported) == ()


def test_a_file_can_leave_a_plan_unpublished_and_publish_it_later(files: Files) -> None:
    draft = SMALL + "    status: draft\n"
    assert said(files.apply(draft))[-1] == "+ plan pro: version 1, a draft"
    assert get_plan(files.session, "pro", include_latest=True).status(NOW) == "draft"
    assert files.apply(draft) == ()
    changed = draft.replace("maxQuantity: 3", "maxQuantity: 4")
    assert said(files.apply(changed)) == ["~ plan pro: version 1, a draft, in place of the draft there was"]
    (change,) = files.apply(SMALL)
    assert said((change,)) == ["~ plan pro: version 1, draft -> active"]
    assert change.lines == ("addons[0].maxQuantity: 4 -> 3",)
    assert files.apply(SMALL) == ()
    assert files.apply(draft) == ()  # what it drafts is for sale already
    assert said(files.apply(changed)) == ["~ plan pro: version 2, a draft"]
    assert get_plan(files.session, "pro").version == 1


def test_a_draft_like_the_file_is_only_published(files: Files) -> None:
    files.apply(SMALL + "    status: draft\n")
    (change,) = files.apply(SMALL)
    assert (said((change,)), change.lines) == (["~ plan pro: version 1, draft -> active"], ())


def test_an_addon_is_drafted_changed_and_published(files: Files) -> None:
    addon = SMALL[SMALL.index("addons:") : SMALL.index("plans:")]
    draft = addon + "    status: draft\n"
    assert said(files.apply(draft)) == ["+ add-on seats: version 1, a draft"]
    (change,) = files.apply(addon.replace("amount: 8", "amount: 9"))
    assert said((change,)) == ["~ add-on seats: version 1, draft -> active"]
    assert change.lines == ("rateCards[0].price.amount: 8 -> 9",)
    assert get_addon(files.session, "seats").status(NOW) == "active"


def test_the_draft_of_somebody_else_gives_way_only_to_a_change(files: Files) -> None:
    files.apply(SMALL)
    draft = next_plan(files.session, get_plan(files.session, "pro"), now=NOW)
    update_plan(
        files.session,
        draft,
        name="Mine",
        description=None,
        metadata=None,
        billing_cadence="P1M",
        pro_rating=True,
        phases=draft.phases,
        now=NOW,
    )
    assert files.apply(SMALL) == ()
    (change,) = files.apply(SMALL.replace("name: Pro", "name: Professional"))
    assert said((change,)) == ["~ plan pro: version 1 -> 2, in place of the draft there was"]
    assert change.lines == ("name: Pro -> Professional",)
    assert get_plan(files.session, "pro").id == draft.id


def test_a_draft_in_another_currency_gives_way_to_the_next_version(files: Files) -> None:
    draft = SMALL + "    status: draft\n"
    files.apply(draft.replace("addons: [{key: seats, fromPlanPhase: main, maxQuantity: 3}]", "currency: EUR"))
    (change,) = files.apply(draft)
    assert said((change,)) == ["~ plan pro: version 2, a draft, in place of the draft there was"]
    assert "currency: EUR -> USD" in change.lines


def test_a_key_whose_versions_are_archived_is_sold_again(files: Files) -> None:
    files.apply(SMALL)
    assert said(files.apply("{}", prune=True)) == [
        "- plan pro: version 1 archived",
        "- add-on seats: version 1 archived",
        "- feature tokens: archived",
    ]
    assert said(files.apply(SMALL)) == [
        "+ feature tokens",
        "+ add-on seats: version 2",
        "+ plan pro: version 2",
    ]


def test_what_is_not_in_the_file_is_left_alone_and_named(files: Files) -> None:
    files.apply(SMALL)
    a_draft(files.session, key="secret")
    found = files.changes("{}")
    assert found == Changes(changes=(), left=("plan pro", "add-on seats", "feature tokens"))


def test_pruning_keeps_what_an_entry_names(files: Files) -> None:
    create_feature(files.session, key="idle", name="Idle", now=NOW)
    files.apply(SMALL)
    plans_only = SMALL[SMALL.index("plans:") :]
    found = files.changes(plans_only, prune=True)
    assert said(found.changes) == ["- feature idle: archived"]
    assert found.left == ("add-on seats (which the file needs)", "feature tokens (which the file needs)")


def test_a_plan_whose_feature_was_archived_elsewhere_is_left_as_it_is(files: Files) -> None:
    files.apply(SMALL)
    archive_feature(files.session, get_feature(files.session, "tokens"), now=NOW)
    exported = export_catalog(files.session, now=NOW)
    assert files.apply(exported) == ()


# -- What is wrong -------------------------------------------------------------------------------------------


CARD = "$.plans[0].phases[0].rateCards[1]"
PRICE = "{type: unit, amount: 0.1}\n"
OFFER = "{key: seats, fromPlanPhase: main, maxQuantity: 3}"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("Seats\n", "Seats\n    colour: red\n", "line 6, $.addons[0].colour: 'colour' is not known here"),
        ("Pro\n", "Pro\n    version: 3\n", "line 11, $.plans[0].version: 'version' is not known here"),
        ("- key: pro", "- key: pro\n    key: pro", "line 10, $.plans[0].key: it is there twice"),
        ("features:", "meters: []\nfeatures:", "line 1, $.meters: 'meters' is not known here"),
        ("plans:", "plans: {}\nx:", "line 8, $.plans: this must be a list"),
        (PRICE, PRICE.replace("0.1", "x"), f"line 22, {CARD}.price.amount: Input should be a valid decimal"),
        ("P1M\n    phases", "1M\n    phases", "line 11, $.plans[0].billingCadence: a plan can't be billed"),
        ("    billingCadence: P1M\n    p", "    p", "line 9, $.plans[0].billingCadence: this is required"),
        ("name: Main", 'name: "a\\0b"', "line 14, $.plans[0].phases[0].name: U+0000 and half"),
        ("name: Main", 'name: "\\ud800"', "line 14, $.plans[0].phases[0].name: U+0000 and half"),
        ("Slug: tokens", "Slug: words", "line 2, $.features[0].meterSlug: no meter 'words'"),
        (
            "meterSlug: tokens",
            "advancedMeterGroupByFilters: {a: {$is: b}}",
            "line 2, $.features[0].advancedMeterGroupByFilters.a.$is: '$is' is not an operator",
        ),
        ("0.1}}", "1e999999999}}", "line 2, $.features[0].unitCost.amount: an amount has at most 30 digits"),
        (": tokens\n            b", ": x\n            b", f"line 20, {CARD}.featureKey: there is no feature"),
        (PRICE, PRICE.replace("0.1", "-1"), f"line 22, {CARD}.price.amount: a price can't be negative"),
        (
            PRICE,
            "{type: tiered, mode: volume, tiers: []}\n",
            f"line 22, {CARD}.price.tiers: a tiered price needs a tier",
        ),
        ("[{key: seats", "[{key: x", "line 23, $.plans[0].addons[0].key: there is no add-on 'x'"),
        ("Phase: main", "Phase: x", "line 23, $.plans[0].addons[0].fromPlanPhase: the plan has no phase 'x'"),
        (", maxQuantity: 3", "", "line 23, $.plans[0].addons[0].maxQuantity: an add-on that can be bought"),
        (
            "multiple",
            "multiple\n    status: draft",
            "line 24, $.plans[0].addons[0].addon.status: the add-on 'seats' is draft",
        ),
        (OFFER, f"{OFFER}, {OFFER}", "line 23, $.plans[0].addons[1].key: the plan offers the add-on 'seats'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(files: Files, old: str, new: str, problem: str) -> None:
    assert SMALL.count(old) == 1
    found = files.problems(SMALL.replace(old, new))
    assert any(line.startswith(problem) for line in found), found
    assert export_catalog(files.session, now=NOW) == "features: []\naddons: []\nplans: []\n"


def test_every_mistake_of_form_is_told_at_once(files: Files) -> None:
    wrong = "features: [{key: a}, {key: a, name: A}, {key: a, name: A}]\nplans: [{key: B}]\n"
    assert [line.split(":")[0] for line in files.problems(wrong)] == [
        "line 1, $.features[0].name",
        "line 1, $.features[2].key",
        "line 2, $.plans[0].name",
        "line 2, $.plans[0].billingCadence",
        "line 2, $.plans[0].phases",
        "line 2, $.plans[0].key",
    ]


@pytest.mark.parametrize("content", ["", "[]", "a text", "features:", "plans: {}"])
def test_a_file_that_is_no_catalog_is_refused(files: Files, content: str) -> None:
    assert re.match(r"line 1, \$[.\w]*: .*must be", files.problems(content)[0])


def test_what_is_no_yaml_is_refused_in_one_line(files: Files) -> None:
    for content in ("plans: [", "a: 1\n---\nb: 2"):
        with pytest.raises(InvalidError, match="is not YAML in UTF-8") as caught:
            files.apply(content)
        assert "\n" not in caught.value.detail


# -- Differences ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ({"a": "1"}, {"a": "1"}, []),
        ({"a": "0.1"}, {"a": "0.2"}, ["a: 0.1 -> 0.2"]),
        ({"a": "x y"}, {"a": "x\n~ plan b"}, ['a: "x y" -> "x\\n~ plan b"']),
        ({"a": "\x1b[2J"}, {"a": "\x9b2J"}, ['a: "\\u001b[2J" -> "\\u009b2J"']),
        ({"a": True, "b": None}, {"a": False, "c": ["x"]}, ["a: true -> false", "- b: null", '+ c: ["x"]']),
        ({"a": ["x", "y"]}, {"a": ["x"]}, ["- a[1]: y"]),
        ({"a": [{"b": "1"}]}, {"a": [{"b": "2"}, {}]}, ["a[0].b: 1 -> 2", "+ a[1]: {}"]),
        ({"a": "x"}, {"a": {"b": "x"}}, ['a: x -> {"b": "x"}']),
        (
            {"a": [{"key": "x", "b": "1"}, {"key": "y"}]},
            {"a": [{"key": "z"}, {"key": "x", "b": "2"}]},
            ['- a[1]: {"key": "y"}', '+ a[0]: {"key": "z"}', "a[1].b: 1 -> 2"],
        ),
        (
            {"a": [{"key": "x"}, {"key": "y"}]},
            {"a": [{"key": "y"}, {"key": "x"}]},
            ["a, in another order: x, y -> y, x"],
        ),
        ({"a": []}, {"a": [{"key": "x"}]}, ['+ a[0]: {"key": "x"}']),
    ],
)
def test_differences(before: object, after: object, lines: list[str]) -> None:
    assert list(differences(before, after)) == lines


# -- The commands --------------------------------------------------------------------------------------------

TOLD = "+ feature tokens\n+ add-on seats: version 1\n+ plan pro: version 1\n"
COUNTED = "3 changes: 3 to add, 0 to change, 0 to archive.\n"


@pytest.fixture
def path(engine: Engine, tmp_path: Path) -> Path:
    """A file for a database that has its meter."""
    with Session(engine) as session, session.begin():
        a_meter(session)
    path = tmp_path / "catalog.yaml"
    path.write_text(SMALL)
    return path


def keys_of_plans(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(Plan.key)))


@pytest.fixture
def environment(database_url: str) -> dict[str, str]:
    return {"TOLLGATE_DATABASE_URL": database_url}


def test_planned_applied_and_exported_on_the_command_line(
    engine: Engine, environment: dict[str, str], path: Path
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        ended = CliRunner().invoke(app, ["catalog", *arguments], env=environment)
        return ended.exit_code, ended.stdout

    assert run("plan", str(path)) == (0, TOLD + COUNTED)
    assert run("plan", str(path), "--exit-code") == (2, TOLD + COUNTED)
    assert run("apply", str(path)) == (1, TOLD + COUNTED)
    assert keys_of_plans(engine) == []
    assert run("apply", str(path), "--yes") == (0, TOLD + COUNTED + "Applied.\n")
    assert keys_of_plans(engine) == ["pro"]
    status, exported = run("export")
    assert (status, exported[:9]) == (0, "features:")
    path.write_text(exported)
    assert run("plan", str(path), "--exit-code", "--prune") == (0, "Nothing to change.\n")


def test_a_wrong_file_is_one_message_and_status_1(environment: dict[str, str], path: Path) -> None:
    path.write_text(SMALL.replace(PRICE, "{type: unit}\n"))
    said = refusal("catalog", "plan", str(path), "--exit-code", environment=environment)
    assert said == f"{path}, line 22, {CARD}.price.amount: this is required"


def test_nobody_is_asked_who_is_not_there(engine: Engine, path: Path) -> None:
    with pytest.raises(InvalidError, match=r"nobody is there to be asked, .*: add --yes to apply it"):
        catalog_commands.apply(engine, path, prune=False, confirm=catalog_commands.ask)
    with pytest.raises(InvalidError, match="nothing was changed"):
        catalog_commands.apply(engine, path, prune=False, confirm=lambda _: False)
    assert keys_of_plans(engine) == []


def test_a_person_at_a_terminal_is_asked(engine: Engine, environment: dict[str, str], path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "api", "catalog", "apply", str(path)],
        env=environment_of(environment),
        cwd=ROOT,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.write(ours, b"y\n")
        output, _ = process.communicate(timeout=90)
    os.close(ours)
    os.close(theirs)
    assert output == f"{TOLD}{COUNTED}Apply these 3 changes? [y/N]: Applied.\n"
    assert process.returncode == 0
    assert keys_of_plans(engine) == ["pro"]


def test_what_was_changed_during_the_question_is_not_overrun(
    engine: Engine, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = []

    def meanwhile(question: str) -> bool:
        questions.append(question)
        with Session(engine) as session, session.begin():
            create_feature(session, key="tokens", name="Mine", now=NOW)
        return True

    with pytest.raises(catalog_commands.CatalogChangedError, match="look at it again"):
        catalog_commands.apply(engine, path, prune=False, confirm=meanwhile)
    assert questions == ["Apply these 3 changes?"]
    assert keys_of_plans(engine) == []
    with Session(engine) as session:
        assert get_feature(session, "tokens").name == "Mine"
    assert capsys.readouterr().out == TOLD + COUNTED


def test_nothing_is_asked_when_nothing_changes(
    engine: Engine, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog_commands.apply(engine, path, prune=False, confirm=None)
    capsys.readouterr()
    catalog_commands.apply(engine, path, prune=False, confirm=catalog_commands.ask)
    assert capsys.readouterr().out == "Nothing to change.\n"
    path.write_text("features: [{key: tokens, name: Words, meterSlug: tokens}]")
    assert catalog_commands.plan(engine, path, prune=False)
    assert "\nNot in the file, and left alone: plan pro, add-on seats.\n" in capsys.readouterr().out


def test_two_that_apply_at_once_take_turns(engine: Engine, path: Path) -> None:
    catalog = read_catalog(path)
    first = lambda session: change_catalog(session, catalog, now=NOW)  # noqa: E731
    assert at_once(engine, first, first).result() == Changes(changes=(), left=())


def test_an_export_that_can_not_be_written_says_so(engine: Engine, tmp_path: Path) -> None:
    catalog_commands.export(engine, tmp_path / "new.yaml")
    assert (tmp_path / "new.yaml").read_text() == "features: []\naddons: []\nplans: []\n"
    with pytest.raises(InvalidError, match=r"can't write .*: Is a directory"):
        catalog_commands.export(engine, tmp_path)


# -- The documentation ---------------------------------------------------------------------------------------


def documented() -> Iterator[tuple[str, str]]:
    text = (ROOT / "docs" / "catalog-as-code.md").read_text(encoding="utf-8")
    yield from re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)


def test_the_documented_file_does_what_is_documented(
    engine: Engine, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = list(documented())
    (content,) = (block for language, block in blocks if language == "yaml")
    answers = [block for _, block in blocks if block[0] in "+~"]
    path.write_text(content)
    catalog_commands.apply(engine, path, prune=False, confirm=None)
    path.write_text(content.replace('"0.00001"', '"0.000012"'))
    catalog_commands.plan(engine, path, prune=False)
    assert capsys.readouterr().out == "Applied.\n".join(answers)
