"""Documents as PDF: the same values as in HTML, drawn on A4 pages.

The table's head stands on every page, as do the number and "page n of m". The same document is the same
file, to the byte: what a PDF says of its own making is the date of the invoice.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC
from io import BytesIO
from typing import Any

from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_LEFT, TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    LongTable,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)

from api.documents.fonts import BOLD, REGULAR, markup, plain_text, register_fonts
from billing.reports.document import Document, DocumentDetail, DocumentLine, DocumentParty
from billing.reports.document_text import (
    money_text,
    percent_text,
    period_text,
    price_text,
    quantity_text,
)

__all__ = ["render_pdf"]

INK, FAINT, RULE, SOFT = HexColor("#1c2433"), HexColor("#667085"), HexColor("#d9dee7"), HexColor("#f5f7fa")
ACCENT, GOOD, BAD, PALE_BAD = (
    HexColor("#24507a"),
    HexColor("#1f7a4d"),
    HexColor("#b42318"),
    HexColor("#fef3f2"),
)
MARK = HexColor("#f9e9e7")

LEFT = RIGHT = 18 * mm
TOP, BOTTOM = 17 * mm, 20 * mm
WIDTH = A4[0] - LEFT - RIGHT
FOOTNOTE = "Days and times are in UTC"
LONGEST = 600
"""Letters of one text: names and notes are shorter, but what events say has no end, and a row must fit."""


def render_pdf(document: Document) -> bytes:
    """How many pages there are is known when they are drawn; several are drawn twice."""
    register_fonts()
    content, pages = _drawn(document, 1)
    return content if pages == 1 else _drawn(document, pages)[0]


def _drawn(document: Document, pages: int) -> tuple[bytes, int]:
    file = BytesIO()
    template = _template(file, document, pages)
    template.build(list(_story(document)))
    return file.getvalue(), template.page


# -- Pages ---------------------------------------------------------------------------------------------------


def _template(file: BytesIO, document: Document, pages: int) -> BaseDocTemplate:
    template = BaseDocTemplate(
        file,
        pagesize=A4,
        invariant=1,
        title=plain_text(f"{document.title} {document.number}"),
        author=plain_text(document.supplier.name),
        creator="Tollgate",
        lang="en",
    )

    def draw(canvas: Canvas, _: object) -> None:
        _draw_page(canvas, document, pages)

    body = Frame(
        LEFT,
        BOTTOM,
        WIDTH,
        A4[1] - TOP - BOTTOM,
        leftPadding=0,
        rightPadding=0,
        topPadding=0,
        bottomPadding=0,
    )
    template.addPageTemplates(PageTemplate(frames=[body], onPage=draw))
    return template


def _draw_page(canvas: Canvas, document: Document, pages: int) -> None:
    made = f"D:{document.made.astimezone(UTC):%Y%m%d%H%M%S}Z"
    canvas.setDateFormatter(lambda *_: made)
    if document.state in ("draft", "void", "deleted"):
        _draw_mark(canvas, document.badge.upper())
    canvas.setStrokeColor(RULE)
    canvas.setLineWidth(0.5)
    canvas.line(LEFT, BOTTOM - 4 * mm, A4[0] - RIGHT, BOTTOM - 4 * mm)
    canvas.setFillColor(FAINT)
    canvas.setFont(REGULAR, 7.5)
    names = (document.supplier.name, f"{document.title} {document.number}")
    line = " \N{MIDDLE DOT} ".join([*(_cut(name, 50) for name in names if name), FOOTNOTE])
    canvas.drawString(LEFT, BOTTOM - 8 * mm, plain_text(line))
    canvas.drawRightString(A4[0] - RIGHT, BOTTOM - 8 * mm, f"Page {canvas.getPageNumber()} of {pages}")


def _draw_mark(canvas: Canvas, text: str) -> None:
    canvas.saveState()
    canvas.translate(A4[0] / 2, A4[1] / 2)
    canvas.rotate(52)
    canvas.setFillColor(MARK)
    canvas.setFont(BOLD, 640 / len(text))
    canvas.drawCentredString(0, -200 / len(text), text)
    canvas.restoreState()


# -- Text ----------------------------------------------------------------------------------------------------


def _style(size: float, *, bold: bool = False, color: Any = INK, right: bool = False) -> ParagraphStyle:
    return ParagraphStyle(
        "",
        fontName=BOLD if bold else REGULAR,
        fontSize=size,
        leading=size * 1.4,
        textColor=color,
        alignment=TA_RIGHT if right else TA_LEFT,
        splitLongWords=1,
    )


BODY, BODY_RIGHT = _style(9), _style(9, right=True)
STRONG, STRONG_RIGHT = _style(9, bold=True), _style(9, bold=True, right=True)
SMALL, SMALL_RIGHT = _style(8, color=FAINT), _style(8, color=FAINT, right=True)
NOTE = _style(7.2, color=FAINT)
HEAD, HEAD_RIGHT = _style(7, bold=True, color=FAINT), _style(7, bold=True, color=FAINT, right=True)
TITLE = _style(22, bold=True, color=ACCENT)
TOTAL, TOTAL_RIGHT = _style(10.5, bold=True), _style(10.5, bold=True, right=True)
SUMMARY = _style(14, bold=True, right=True)


def _text(text: str, style: ParagraphStyle) -> Paragraph:
    return Paragraph(markup(_cut(text, LONGEST)), style)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


# -- The head ------------------------------------------------------------------------------------------------


def _story(document: Document) -> Iterator[Flowable]:
    yield _heading(document)
    yield from _notice(document)
    yield _parties(document)
    yield _summary(document)
    yield Spacer(0, 6 * mm)
    yield _lines(document)
    yield _totals(document)
    yield from _foot(document)


def _heading(document: Document) -> Flowable:
    left = [_text(document.title, TITLE), Spacer(0, 1 * mm), _text(document.number, BODY)]
    right = [_text(document.supplier.name, STRONG_RIGHT), Spacer(0, 2 * mm), _badge(document)]
    style: list[Any] = [
        *_NO_PADDING,
        ("LINEBELOW", (0, 0), (-1, -1), 2.2, ACCENT),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 5 * mm),
        ("ALIGN", (1, 0), (1, 0), "RIGHT"),
    ]
    return Table([[left, right]], colWidths=[WIDTH * 0.55, WIDTH * 0.45], style=TableStyle(style))


def _badge(document: Document) -> Flowable:
    color = _COLORS.get(document.state, ACCENT)
    text = document.badge.upper()
    width = stringWidth(text, BOLD, 8) + 6 * mm
    style: list[Any] = [
        *_NO_PADDING,
        ("BOX", (0, 0), (-1, -1), 1, color),
        ("ROUNDEDCORNERS", [7, 7, 7, 7]),
        ("LEFTPADDING", (0, 0), (-1, -1), 3 * mm),
        ("TOPPADDING", (0, 0), (-1, -1), 0.6 * mm),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 1 * mm),
    ]
    cell = Paragraph(text, _style(8, bold=True, color=color))
    return Table([[cell]], colWidths=[width], style=TableStyle(style), hAlign="RIGHT")


_COLORS = {
    "paid": GOOD,
    "draft": BAD,
    "void": BAD,
    "deleted": BAD,
    "overdue": BAD,
    "uncollectible": BAD,
}
_NO_PADDING: list[Any] = [
    ("LEFTPADDING", (0, 0), (-1, -1), 0),
    ("RIGHTPADDING", (0, 0), (-1, -1), 0),
    ("TOPPADDING", (0, 0), (-1, -1), 0),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 0),
    ("VALIGN", (0, 0), (-1, -1), "TOP"),
]


def _notice(document: Document) -> Iterator[Flowable]:
    """What everybody must see who takes it for an invoice."""
    if not document.notice:
        return
    style: list[Any] = [
        ("BACKGROUND", (0, 0), (-1, -1), PALE_BAD),
        ("LINEBEFORE", (0, 0), (0, -1), 3, BAD),
        ("LEFTPADDING", (0, 0), (-1, -1), 4 * mm),
        ("TOPPADDING", (0, 0), (-1, -1), 2 * mm),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2.4 * mm),
    ]
    words = Paragraph(f"<b>{document.badge}.</b> {markup(document.notice)}", BODY)
    yield Spacer(0, 5 * mm)
    yield Table([[words]], colWidths=[WIDTH], style=TableStyle(style))


def _parties(document: Document) -> Flowable:
    cells = [
        list(_party("From", document.supplier)),
        list(_party("To", document.customer)),
        _facts(document),
    ]
    style: list[Any] = [
        *_NO_PADDING,
        ("TOPPADDING", (0, 0), (-1, -1), 5.5 * mm),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 5.5 * mm),
        ("RIGHTPADDING", (0, 0), (1, -1), 6 * mm),
    ]
    widths = [WIDTH * 0.34, WIDTH * 0.34, WIDTH * 0.32]
    return Table([cells], colWidths=widths, style=TableStyle(style))


def _facts(document: Document) -> Flowable:
    rows = [[_text(name, SMALL), _text(value, BODY_RIGHT)] for name, value in document.facts]
    style = [*_NO_PADDING, ("BOTTOMPADDING", (0, 0), (-1, -1), 0.8 * mm)]
    widths = [16 * mm, WIDTH * 0.32 - 16 * mm]
    return Table(rows, colWidths=widths, style=TableStyle(style))


def _party(label: str, party: DocumentParty) -> Iterator[Flowable]:
    yield _text(label.upper(), HEAD)
    yield Spacer(0, 0.8 * mm)
    yield _text(party.name, STRONG)
    for line in party.address:
        yield _text(line, BODY)
    if party.tax_id:
        yield _text(f"Tax ID {party.tax_id}", SMALL)


def _summary(document: Document) -> Flowable:
    left = [_text(document.refers_to, BODY)] if document.refers_to else []
    if document.period is not None:
        left.append(_text(f"For {period_text(document.period)}", _style(9, color=FAINT)))
    total = _text(document.total_text, SUMMARY)
    style: list[Any] = [
        ("BACKGROUND", (0, 0), (-1, -1), SOFT),
        ("ROUNDEDCORNERS", [3, 3, 3, 3]),
        ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
        ("LEFTPADDING", (0, 0), (-1, -1), 4 * mm),
        ("RIGHTPADDING", (0, 0), (-1, -1), 4 * mm),
        ("TOPPADDING", (0, 0), (-1, -1), 2.2 * mm),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 3 * mm),
    ]
    return Table([[left, total]], colWidths=[WIDTH * 0.55, WIDTH * 0.45], style=TableStyle(style))


# -- Lines ---------------------------------------------------------------------------------------------------


def _lines(document: Document) -> Flowable:
    taxed = bool(document.taxes)
    rows = [("head", _head_row(document, taxed=taxed))]
    for line in document.lines:
        rows += _line_rows(line, document.currency, taxed=taxed)
    kinds = [kind for kind, _ in rows]
    return LongTable(
        [cells for _, cells in rows],
        colWidths=_widths(taxed=taxed),
        repeatRows=1,
        style=TableStyle([*_NO_PADDING, *_TABLE, *_row_styles(kinds)]),
    )


_Row = tuple[str, list[Any]]
"""What kind of row it is (head, line, detail, discount), and its cells."""

_TABLE: list[Any] = [
    ("LEFTPADDING", (1, 0), (-1, -1), 3.5 * mm),
    ("TOPPADDING", (0, 1), (-1, -1), 0.5 * mm),
    ("BOTTOMPADDING", (0, 0), (-1, 0), 1.4 * mm),
    ("LINEBELOW", (0, 0), (-1, 0), 1, INK),
    ("LINEBELOW", (0, -1), (-1, -1), 1, INK),
]


def _widths(*, taxed: bool) -> list[float]:
    rest = [38 * mm, 23 * mm, 22 * mm, *([14 * mm] if taxed else []), 29 * mm]
    return [WIDTH - sum(rest), *rest]


def _head_row(document: Document, *, taxed: bool) -> list[Any]:
    left = [_text(name, HEAD) for name in ("DESCRIPTION", "SERVICE PERIOD")]
    names = ["QUANTITY", "UNIT PRICE", *(["TAX"] if taxed else []), f"AMOUNT ({document.currency})"]
    return [*left, *(_text(name, HEAD_RIGHT) for name in names)]


def _line_rows(line: DocumentLine, currency: str, *, taxed: bool) -> Iterator[_Row]:
    price = "" if line.unit_price is None else price_text(line.unit_price, currency)
    percents = ", ".join(map(percent_text, line.percents))
    yield (
        "line",
        [
            [_text(line.name, STRONG), *(_text(note, NOTE) for note in line.notes)],
            _text(period_text(line.period), BODY),
            _quantity(line),
            _text(price, BODY_RIGHT),
            *([_text(percents, BODY_RIGHT)] if taxed else []),
            _text(money_text(line.amount, currency), STRONG_RIGHT),
        ],
    )
    for detail in line.details:
        yield from _detail_rows(detail, currency, taxed=taxed)


def _quantity(line: DocumentLine) -> list[Flowable]:
    if line.quantity is None:
        return []
    unit = [_text(line.unit, SMALL_RIGHT)] if line.unit else []
    return [_text(quantity_text(line.quantity), BODY_RIGHT), *unit]


def _detail_rows(detail: DocumentDetail, currency: str, *, taxed: bool) -> Iterator[_Row]:
    words = [_text(detail.words, NOTE)] if detail.words else []
    yield (
        "detail",
        [
            [_text(detail.name, SMALL), *words],
            "",
            _text(quantity_text(detail.quantity), SMALL_RIGHT),
            _text(price_text(detail.unit_price, currency), SMALL_RIGHT),
            *([""] if taxed else []),
            _text(money_text(detail.amount, currency), SMALL_RIGHT),
        ],
    )
    for discount in detail.discounts:
        amount = _text(money_text(-discount.amount, currency), SMALL_RIGHT)
        yield "discount", [_text(discount.description, SMALL), *[""] * (4 if taxed else 3), amount]


def _row_styles(kinds: Sequence[str]) -> Iterator[Any]:
    """A line begins with a rule and space; what belongs to it is set in, and does not begin a page alone."""
    for i, (kind, following) in enumerate(zip(kinds, [*kinds[1:], "line"], strict=True)):
        if kind == "line":
            yield "TOPPADDING", (0, i), (-1, i), 1.6 * mm
        if kind == "line" and i > 1:
            yield "LINEABOVE", (0, i), (-1, i), 0.5, RULE
        if kind in ("detail", "discount"):
            yield "LEFTPADDING", (0, i), (0, i), 4 * mm
            yield "SPAN", (0, i), (1 if kind == "detail" else -2, i)
        if kind != "head" and following == "line":
            yield "BOTTOMPADDING", (0, i), (-1, i), 2 * mm
        elif kind != "head":
            yield "NOSPLIT", (0, i), (0, i + 1)


# -- Below the lines -----------------------------------------------------------------------------------------


def _totals(document: Document) -> Flowable:
    rows = [
        [
            _text(row.label, TOTAL if row.strong else SMALL),
            _text(row.text, TOTAL_RIGHT if row.strong else BODY_RIGHT),
        ]
        for row in document.sums
    ]
    style: list[Any] = [*_NO_PADDING, ("BOTTOMPADDING", (0, 0), (-1, -1), 0.9 * mm)]
    for i, row in enumerate(document.sums):
        if row.strong:
            style.append(("LINEABOVE", (0, i), (-1, i), 0.5, RULE))
            style.append(("TOPPADDING", (0, i), (-1, i), 1.6 * mm))
    style += [("TOPPADDING", (0, 0), (-1, 0), 2.5 * mm), ("NOSPLIT", (0, 0), (-1, -1))]
    widths = [WIDTH * 0.3, WIDTH * 0.2]
    return Table(rows, colWidths=widths, style=TableStyle(style), hAlign="RIGHT")


def _foot(document: Document) -> Iterator[Flowable]:
    yield Spacer(0, 6 * mm)
    for text in (document.terms, *document.notes.splitlines()):
        if text:
            yield _text(text, BODY)
            yield Spacer(0, 1.5 * mm)
