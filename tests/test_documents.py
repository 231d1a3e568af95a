"""Documents: what an invoice shows to whoever has to pay it, as HTML and as PDF."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from datetime import UTC, datetime
from decimal import Decimal
from html import unescape
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pypdf import PdfReader
from sqlalchemy.orm import Session

from api.documents.html import TemplateBrokenError, render_html
from api.documents.pdf import render_pdf
from billing.contracts.customer import (
    LONGEST_ADDRESS,
    LONGEST_LINE,
    Address,
    Customer,
    address_issues,
)
from billing.contracts.customer_changes import CustomerDetails, create_customer
from billing.invoices.credit_notes import CreditLine, CreditNoteDetails, create_credit_note
from billing.invoices.invoice import Invoice
from billing.invoices.invoicing import collect
from billing.invoices.payments import PaymentDetails, account_of, record_payment
from billing.proof.line_usage import LineWithoutUsageError, usage_behind
from billing.rating.rater import Totals
from billing.reports.document import Document, DocumentLine, DocumentParty, DocumentTax, State, document_of
from billing.reports.document_text import (
    day_text,
    money_text,
    percent_text,
    period_text,
    price_text,
    quantity_text,
)
from billing.taxes.tax_rates import TaxRateDetails, create_tax_rate
from catalog.discount import Discounts, PercentageDiscount, UsageDiscount
from catalog.price import MatrixCell, MatrixPrice, PriceTier, TieredPrice, TierUnitPrice
from catalog.rate_card import RateCard, UsageBasedRateCard
from metering.event import Event
from metering.events import append_events, keyed
from metering.exact import total
from metering.period import Period
from tests.billed_world import a_billed_world
from tests.billing_clock import bill_until, invoices_of
from tests.builders import (
    START,
    a_metered_feature,
    a_plan,
    at,
    fee,
    per_unit,
    phase,
    sign_up,
    spent,
    store,
)

ADDRESS = Address(line1="Łódzka 7", postal_code="00-950", city="Warszawa", country="PL")
UNPAID = {"openmeter.io/sandbox/target-payment-status": "action_required"}


def a_payer(
    session: Session, name: str = "Kong Air", *, subject: str = "ada", unpaid: bool = False
) -> Customer:
    details = CustomerDetails(
        name=name, subject_keys=(subject,), billing_address=ADDRESS, metadata=UNPAID if unpaid else None
    )
    return create_customer(session, details, now=START)


def tiered() -> UsageBasedRateCard:
    """5 units free; 10 at 0.125, what is above at 0.1; 10 % off."""
    tiers = (
        PriceTier(up_to_amount=Decimal(10), unit_price=TierUnitPrice(type="unit", amount=Decimal("0.125"))),
        PriceTier(unit_price=TierUnitPrice(type="unit", amount=Decimal("0.1"))),
    )
    return replace(
        per_unit(),
        price=TieredPrice(type="tiered", mode="graduated", tiers=tiers),
        discounts=Discounts(
            percentage=PercentageDiscount(percentage=Decimal(10)), usage=UsageDiscount(quantity=Decimal(5))
        ),
    )


def billed(
    session: Session, *cards: RateCard, customer: Customer | None = None, currency: str = "USD"
) -> Invoice:
    """What is billed on 1 February to whoever signed up for these a month before."""
    a_metered_feature(session)
    payer = customer or a_payer(session)
    sign_up(session, payer, a_plan(session, phase(*cards), currency=currency))
    store(
        session, spent("ada", "25", "2026-01-10", model="gpt-4o"), spent("ada", "8", "2026-01-20", model="o3")
    )
    bill_until(session, at("2026-02-02"))
    return invoices_of(session)[-1]


def shown(session: Session, invoice: Invoice) -> Document:
    return document_of(account_of(session, invoice))


def a_line(name: str = "Seats", amount: str = "10.00", quantity: str = "1") -> DocumentLine:
    return DocumentLine(
        name=name,
        period=Period(start=at("2026-01-01"), end=at("2026-02-01")),
        notes=(),
        quantity=Decimal(quantity),
        unit="",
        unit_price=Decimal(amount),
        amount=Decimal(amount),
        percents=(),
        details=(),
    )


def a_document(
    *lines: DocumentLine, state: State = "open", currency: str = "USD", customer: str = "Kong Air"
) -> Document:
    amount = total(line.amount for line in lines)
    return Document(
        kind="invoice",
        state=state,
        number="INV-KOAI-1",
        currency=currency,
        made=at("2026-02-01T01:00"),
        due=at("2026-03-03"),
        period=Period(start=at("2026-01-01"), end=at("2026-02-01")),
        supplier=DocumentParty(name="Tollgate", address=("1 Gate Road",), tax_id="EL123"),
        customer=DocumentParty(name=customer, address=(), tax_id=None),
        refers_to="",
        lines=lines,
        totals=Totals(amount=amount),
        taxes=(),
        received=(),
        amount_due=amount,
        terms="",
        notes="",
    )


def reader(document: Document) -> PdfReader:
    return PdfReader(BytesIO(render_pdf(document)))


def pages(document: Document) -> list[str]:
    """The text of each page."""
    return [typed(page.extract_text()) for page in reader(document).pages]


def said(html: str) -> str:
    """The text that a browser shows."""
    return typed(unescape(re.sub(r"<[^>]*>", " ", html.partition("<main>")[2])))


def typed(text: str) -> str:
    """As one types it: one space between words, and hyphens for dashes."""
    return re.sub(r"\s+", " ", text).replace("\N{EN DASH}", "-")


# -- Words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "currency", "money", "price"),
    [
        ("1234567.5", "USD", "1,234,567.50", "1,234,567.50"),
        ("-3", "USD", "-3.00", "-3.00"),
        ("1234", "JPY", "1,234", "1,234"),
        ("1.5", "KWD", "1.500", "1.500"),
        ("1E+3", "USD", "1,000.00", "1,000.00"),
    ],
)
def test_money_has_the_digits_of_its_currency_and_a_price_all_it_has(
    amount: str, currency: str, money: str, price: str
) -> None:
    assert money_text(Decimal(amount), currency) == money
    assert price_text(Decimal(amount), currency) == price


def test_a_price_shows_every_digit() -> None:
    assert price_text(Decimal("0.0000125"), "USD") == "0.0000125"
    assert price_text(Decimal("0.5"), "JPY") == "0.5"


def test_quantities_have_no_idle_zeros() -> None:
    assert [quantity_text(Decimal(text)) for text in ("1.50", "1E+3", "0", "-0.25")] == [
        "1.5",
        "1,000",
        "0",
        "-0.25",
    ]
    assert percent_text(Decimal("19.0")) == "19\xa0%"


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        ("2026-01-01", "2026-02-01", "1 - 31 Jan 2026"),
        ("2026-01-15", "2026-02-15", "15 Jan - 14 Feb 2026"),
        ("2026-12-15", "2027-01-15", "15 Dec 2026 - 14 Jan 2027"),
        ("2026-01-01", "2026-01-02", "1 Jan 2026"),
        ("2026-01-01T08:00", "2026-01-01T08:00", "1 Jan 2026"),
        ("2026-01-01", "2026-01-15T12:30", "1 Jan 2026, 00:00 - 15 Jan 2026, 12:30"),
        ("2026-01-01T02:00+02:00", "2026-02-01T02:00+02:00", "1 - 31 Jan 2026"),
    ],
)
def test_a_period_of_days_includes_its_last_one(start: str, end: str, text: str) -> None:
    assert typed(period_text(Period(start=at(start), end=at(end)))) == text


def test_a_day_is_that_in_utc() -> None:
    assert day_text(at("2026-02-01T01:00+02:00")) == "31 Jan 2026"


# -- What a document says ------------------------------------------------------------------------------------


def test_lines_show_what_was_rated_and_how(session: Session) -> None:
    document = shown(session, billed(session, fee("20"), tiered()))
    usage, seat = document.lines
    assert (usage.name, usage.quantity, usage.unit_price, usage.amount) == (
        "tokens",
        Decimal(28),
        None,
        Decimal("2.74"),
    )
    assert usage.notes == ("5 free of charge",)
    assert [(one.quantity, one.unit_price, one.amount) for one in usage.details] == [
        (Decimal(10), Decimal("0.125"), Decimal("1.25")),
        (Decimal(18), Decimal("0.1"), Decimal("1.80")),
    ]
    assert [reduction.amount for one in usage.details for reduction in one.discounts] == [
        Decimal("0.13"),
        Decimal("0.18"),
    ]
    assert (seat.name, seat.quantity, seat.unit_price, seat.details) == ("seat", Decimal(1), Decimal(20), ())
    assert [(row.label, row.text) for row in document.sums] == [
        ("Before discounts", "23.05"),
        ("Discounts", "-0.31"),
        ("Subtotal", "22.74"),
        ("Total", "USD 22.74"),
        ("Paid", "-22.74"),
        ("Amount due", "USD 0.00"),
    ]


def test_taxes_are_added_up_by_rate_and_stand_between_subtotal_and_total(session: Session) -> None:
    details = TaxRateDetails(name="VAT", country="PL", percent=Decimal(23), valid_from=START)
    create_tax_rate(session, details, now=START)
    document = shown(session, billed(session, fee("20"), per_unit("1")))
    assert document.taxes == (
        DocumentTax(percent=Decimal(23), behavior="exclusive", base=Decimal(53), amount=Decimal("12.19")),
    )
    assert [line.percents for line in document.lines] == [(Decimal(23),)] * 2
    sums = [(typed(row.label), row.text) for row in document.sums]
    assert sums[:3] == [("Subtotal", "53.00"), ("Tax 23 % on 53.00", "12.19"), ("Total", "USD 65.19")]


def test_an_open_invoice_says_what_was_paid_and_what_is_still_due(session: Session) -> None:
    invoice = billed(session, fee("20"), customer=a_payer(session, unpaid=True))
    assert shown(session, invoice).amount_due == 20
    details = PaymentDetails(amount=Decimal("12.5"), received_at=at("2026-02-01"), method="bank transfer")
    record_payment(session, invoice.id, details, now=at("2026-02-02"))
    document = shown(session, invoice)
    assert (document.state, document.badge, document.amount_due) == ("open", "Open", Decimal("7.5"))
    assert [(row.label, row.text) for row in document.sums][-2:] == [
        ("Paid on 1 Feb 2026, bank transfer", "-12.50"),
        ("Amount due", "USD 7.50"),
    ]
    assert document.terms.startswith("USD 7.50 will be charged to your payment method by 3 Mar 2026")


def test_a_credit_note_says_what_it_is_for_and_asks_for_nothing(session: Session) -> None:
    invoice = billed(session, fee("20"))
    line = CreditLine(line_id=invoice.lines[0].id, amount=Decimal(5))
    details = CreditNoteDetails(reason="an outage", lines=[line])
    note = create_credit_note(session, invoice.id, details, now=at("2026-02-03"))
    document = shown(session, note)
    assert (document.title, document.number[:3], document.due, document.terms) == (
        "Credit note",
        "CN-",
        None,
        "",
    )
    assert document.refers_to == f"For invoice {invoice.number} of 1 Feb 2026: an outage"
    assert [(row.label, row.text) for row in document.sums] == [("Subtotal", "-5.00"), ("Total", "USD -5.00")]
    assert "Credit note" in pages(document)[0]


def test_everything_in_a_hard_half_year_adds_up(session: Session) -> None:
    """Late and voided usage, invoices in mid-month, taxes, credits, a voided invoice."""
    a_billed_world(session)
    for invoice in invoices_of(session):
        document = shown(session, invoice)
        subtotal = total(line.amount for line in document.lines)
        assert document.subtotal == subtotal
        taxes = total(tax.amount for tax in document.taxes if tax.behavior == "exclusive")
        assert subtotal + taxes == document.totals.total
        for line in document.lines:
            off = total(one.amount for detail in line.details for one in detail.discounts)
            assert not line.details or total(one.amount for one in line.details) - off == line.amount
        if document.kind == "invoice" and document.state != "void":
            assert (
                document.totals.total - total(one.amount for one in document.received) == document.amount_due
            )
        for billed_line in invoice.lines:
            if billed_line.usage is not None:
                used = total(row.value for row in usage_behind(session, invoice, billed_line)[1])
                assert used == Decimal(billed_line.usage["quantity"])


def test_a_draft_is_marked_as_one_and_asks_for_nothing(session: Session) -> None:
    a_metered_feature(session)
    payer = a_payer(session)
    sign_up(session, payer, a_plan(session, phase(fee("20"))))
    (draft,) = collect(session, [payer], now=at("2026-01-01"))
    document = shown(session, draft)
    assert (document.state, document.due, document.terms) == ("draft", None, "")
    assert 'class="mark"' in render_html(document)
    assert "Draft. Nothing is owed by this yet" in said(render_html(document))
    (page,) = pages(document)
    assert "DRAFT" in page
    assert "Draft. Nothing is owed by this yet" in page


@pytest.mark.parametrize("state", ["open", "overdue", "paid", "uncollectible"])
def test_what_was_issued_is_not_marked(state: State) -> None:
    document = a_document(a_line(), state=state)
    assert 'class="mark"' not in render_html(document)
    assert "Nothing is owed" not in pages(document)[0]
    assert document.badge in said(render_html(document))


# -- HTML and PDF --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("currency", "amounts"),
    [
        ("USD", ["20.00", "3.30", "23.30"]),
        ("JPY", ["20", "3", "23"]),
        ("KWD", ["20.000", "3.300", "23.300"]),
    ],
)
def test_both_forms_have_the_numbers_of_the_invoice(
    session: Session, currency: str, amounts: Sequence[str]
) -> None:
    document = shown(session, billed(session, fee("20"), per_unit("0.1"), currency=currency))
    seat, tokens, whole = amounts
    for text in (said(render_html(document)), *pages(document)):
        assert document.number in text
        assert "Kong Air" in text
        assert "Łódzka 7 00-950 Warszawa Poland" in text
        assert re.search(rf"seat 1 - 28 Feb 2026 1 {seat} {seat}\b", text), text
        assert re.search(rf"tokens .*1 - 31 Jan 2026 33 0\.1(00?)? {tokens}\b", text), text
        assert re.search(rf"Total {currency} {whole}\b", text)
        assert re.search(rf"Amount due {currency} 0\b", text)


def test_what_people_call_themselves_is_text_and_never_markup(session: Session) -> None:
    name = "<script>alert(1)</script> & <b>Co</b> {{ 7 * 7 }} \"'"
    card = replace(fee("20"), name="<img src=x onerror=alert(2)>", description="</td><td>free")
    document = shown(session, billed(session, card, customer=a_payer(session, name)))
    html = render_html(document)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;Co&lt;/b&gt; {{ 7 * 7 }}" in html
    assert not re.search("<(script|img|b)[ >]", html)
    for text in (said(html), *pages(document)):
        assert name in text
        assert "<img src=x onerror=alert(2)>" in text


def test_three_hundred_lines_break_over_pages_with_the_head_on_each() -> None:
    lines = [a_line(f"Item no. {i:03}", amount=f"{i}.25", quantity="2") for i in range(300)]
    document = a_document(*lines)
    found = pages(document)
    assert len(found) > 5
    for number, page in enumerate(found, 1):
        assert f"Page {number} of {len(found)}" in page
        assert "INV-KOAI-1" in page
    with_lines = [page for page in found if "Item no." in page]
    assert all(page.count("DESCRIPTION") == 1 for page in with_lines)
    rows = re.findall(r"Item no\. (\d+)\s+1 - 31 Jan 2026\s+2\s+[\d.]+\s+([\d.]+)", "\n".join(found))
    assert [name for name, _ in rows] == [f"{i:03}" for i in range(300)]
    assert sum(Decimal(amount) for _, amount in rows) == document.totals.total


def test_the_same_document_is_the_same_file_and_bears_the_date_of_the_invoice() -> None:
    document = a_document(a_line())
    assert render_pdf(document) == render_pdf(replace(document))
    found = reader(document).metadata
    assert found is not None
    assert found.creation_date == datetime(2026, 2, 1, 1, tzinfo=UTC)
    assert (found.title, found.author) == ("Invoice INV-KOAI-1", "Tollgate")
    assert render_pdf(document) != render_pdf(replace(document, number="INV-KOAI-2"))


def test_documents_that_are_printed_at_once_are_what_they_are_alone() -> None:
    documents = [
        a_document(*(a_line(f"{letter} {i}") for i in range(30)), customer=letter * 9)
        for letter in "ABЖЯΨλ東서"
    ]
    alone = [render_pdf(document) for document in documents]
    with ThreadPoolExecutor(len(documents)) as pool:
        assert list(pool.map(render_pdf, documents)) == alone


@pytest.mark.parametrize(
    ("name", "in_pdf"),
    [
        ("Çağlayan & Søn, Łódź, Đà Nẵng", "Çağlayan & Søn, Łódź, Đà Nẵng"),
        ("Тольгейт Мережі їґє", "Тольгейт Мережі їґє"),
        ("Ελληνικές Πύλες ώΐ", "Ελληνικές Πύλες ώΐ"),
        ("Cafe\u0301 \t Zoe\u0308", "Café Zoë"),
        ("東京ゲート株式会社", "東京ゲート株式会社"),
        ("Kong 서울 주식회사", "Kong 서울 주식회사"),
        ("שלום Co \U0001f680\x07", "���� Co ��"),
    ],
)
def test_every_script_is_printed_or_it_is_shown_that_something_stood_there(name: str, in_pdf: str) -> None:
    document = a_document(a_line(name), customer=name)
    assert in_pdf in pages(document)[0]


@settings(max_examples=30)
@given(name=st.text(max_size=300), note=st.text(max_size=1500))
def test_any_text_can_be_printed(name: str, note: str) -> None:
    line = replace(a_line(name), notes=(note,))
    assert render_pdf(replace(a_document(line, customer=name), notes=note)).startswith(b"%PDF")


def test_what_is_longer_than_a_page_is_cut_in_the_pdf_and_whole_in_html() -> None:
    long = "W" * 20_000
    document = a_document(a_line(long), customer=long)
    assert "W…" in "".join(pages(document))
    assert long in render_html(document)


@pytest.mark.parametrize("wide", ["W", "漢", "\ufdfd"])
def test_the_longest_address_that_may_be_given_is_printed(wide: str) -> None:
    part = wide * (LONGEST_ADDRESS // 6)
    for address in (
        Address(line1=part, line2=part, postal_code=part, city=part, state=part, phone_number=part),
        Address(line1=wide * LONGEST_LINE, line2=wide * (LONGEST_ADDRESS - LONGEST_LINE), country="GS"),
    ):
        assert not list(address_issues(address, "$"))
        given = [one for one in astuple(address) if one]
        party = DocumentParty(name=wide * 256, address=tuple(given), tax_id="W" * 32)
        document = replace(a_document(a_line("seat")), supplier=party, customer=party)
        assert render_pdf(document).startswith(b"%PDF")


@pytest.mark.parametrize("member", ["line1", "line2", "postal_code", "city", "state", "phone_number"])
def test_longer_addresses_are_refused_with_their_place(member: str) -> None:
    (issue,) = address_issues(Address(**{member: "x" * (LONGEST_LINE + 1)}), "$.billingAddress")
    wire = TypeAdapter(Address).dump_python(Address(**{member: "x"}), by_alias=True, exclude_none=True)
    assert (issue.code, issue.field) == ("invalid_length", f"$.billingAddress.{next(iter(wire))}")
    together = Address(line1="x" * LONGEST_LINE, line2="x" * LONGEST_LINE)
    (issue,) = address_issues(together, "$.billingAddress")
    assert (issue.code, issue.field) == ("invalid_length", "$.billingAddress")


# -- Templates -----------------------------------------------------------------------------------------------


def templated(tmp_path: Path, text: str | bytes) -> str:
    file = tmp_path / "mine.html"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return render_html(a_document(a_line("<Seats>", "1234.5")), file)


def test_a_template_of_ones_own_replaces_the_built_in_one(tmp_path: Path) -> None:
    line = "{{ line.name }} {{ line.amount | money(document.currency) }}"
    text = f"{{{{ document.number }}}}: {{% for line in document.lines %}}{line}{{% endfor %}}"
    assert templated(tmp_path, text) == "INV-KOAI-1: &lt;Seats&gt; 1,234.50"


def test_a_template_may_change_a_part_of_the_built_in_one(tmp_path: Path) -> None:
    html = templated(tmp_path, '{% extends "invoice.html" %}{% block foot %}Bank: 4711{% endblock %}')
    assert "Bank: 4711" in html
    assert "1,234.50" in html
    assert "Days and times" not in html


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% for line in", "line 1: "),
        ("{{ document.sum }}", "has no attribute 'sum'"),
        ("{{ document.number | shout }}", "No filter named 'shout'"),
        ("{% include '/etc/passwd' %}", "/etc/passwd"),
        ("{{ document.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "it calls itself without end"),
        (b"\xff\xfe", "it is not UTF-8"),
    ],
)
def test_a_broken_template_says_what_is_wrong_and_the_built_in_one_works_on(
    tmp_path: Path, text: str | bytes, says: str
) -> None:
    with pytest.raises(TemplateBrokenError) as found:
        templated(tmp_path, text)
    assert "mine.html" in found.value.detail
    assert says in found.value.detail
    assert found.value.issues[0].code == "invoice_template_broken"
    assert "Seats" in render_html(a_document(a_line()))


def test_a_template_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TemplateBrokenError, match="No such file"):
        render_html(a_document(a_line()), tmp_path / "mine.html")


# -- The usage behind a line ---------------------------------------------------------------------------------


def known_at(session: Session, moment: str, *events: Event) -> None:
    connection = session.connection().connection.driver_connection
    assert connection is not None
    append_events(connection, keyed((event, at(moment)) for event in events), now=at(moment))


def behind(session: Session, invoice: Invoice) -> list[str]:
    """Day, group and value."""
    _, rows = usage_behind(session, invoice, invoice.lines[0])
    return [" ".join([f"{row.window.start:%m-%d}", *row.group.values(), str(row.value)]) for row in rows]


def test_the_usage_of_each_day_sums_to_the_metered_quantity(session: Session) -> None:
    invoice = billed(session, per_unit("0.1"))
    assert invoice.lines[0].usage is not None
    assert invoice.lines[0].usage["quantity"] == "33"
    assert behind(session, invoice) == ["01-10 25", "01-20 8"]


def test_it_is_told_apart_by_what_the_price_asks(session: Session) -> None:
    cells = (MatrixCell(values={"model": "o3"}, amount=Decimal("0.5")),)
    price = MatrixPrice(type="matrix", dimensions=("model",), cells=cells, default_amount=Decimal("0.1"))
    invoice = billed(session, replace(per_unit(), price=price))
    assert behind(session, invoice) == ["01-10 gpt-4o 25", "01-20 o3 8"]


def test_what_came_after_the_snapshot_is_not_behind_the_line(session: Session) -> None:
    invoice = billed(session, per_unit("0.1"))
    known_at(session, "2026-02-10", spent("ada", "7", "2026-01-11"))
    assert behind(session, invoice) == ["01-10 25", "01-20 8"]
    bill_until(session, at("2026-03-02"))
    late = next(one for one in invoices_of(session) if one.id != invoice.id)
    assert behind(session, late) == ["01-10 25", "01-11 7", "01-20 8"]


def test_a_fee_has_no_usage_behind_it(session: Session) -> None:
    invoice = billed(session, fee("20"))
    with pytest.raises(LineWithoutUsageError, match="'seat' bills no usage"):
        usage_behind(session, invoice, invoice.lines[0])
