"""Documents as HTML, by a template that one can replace: TOLLGATE_INVOICE_TEMPLATE.

A template is Jinja2 in a sandbox: it sees the document and can format it, and nothing else. Whatever it
writes is escaped. It may extend the built-in one: `{% extends "invoice.html" %}`.
"""

from functools import cache
from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from billing.reports.document import Document
from billing.reports.document_text import (
    day_text,
    money_text,
    percent_text,
    period_text,
    price_text,
    quantity_text,
)
from metering.errors import Issue, UnavailableError

__all__ = ["BUILT_IN", "TemplateBrokenError", "render_html"]

BUILT_IN = Path(__file__).with_name("templates") / "invoice.html"


class TemplateBrokenError(UnavailableError):
    pass


def render_html(document: Document, template: Path | None = None) -> str:
    """By the built-in template unless another one is named.

    Raises TemplateBrokenError when that can't be read, or does not work.
    """
    if template is None:
        return _built_in().render(document=document)
    try:
        return _environment().from_string(template.read_text("utf-8")).render(document=document)
    except OSError as error:
        raise _broken(template, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise _broken(template, "it is not UTF-8") from None
    except RecursionError:
        raise _broken(template, "it calls itself without end") from None
    except TemplateError as error:
        raise _broken(template, _said_by(error)) from None
    except Exception as error:  # noqa: BLE001  a template's arithmetic may fail in any way
        raise _broken(template, f"{type(error).__name__}: {error}") from None


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(BUILT_IN.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "money": money_text,
        "price": price_text,
        "quantity": quantity_text,
        "percent": percent_text,
        "day": day_text,
        "period": period_text,
    }
    return environment


@cache
def _built_in() -> Template:
    return _environment().get_template(BUILT_IN.name)


def _said_by(error: TemplateError) -> str:
    line = getattr(error, "lineno", None)
    return f"line {line}: {error.message}" if line else str(error.message)


def _broken(template: Path, why: str) -> TemplateBrokenError:
    message = f"the invoice template {template.name} can't be used: {why}"
    hint = (
        "Mend the file that TOLLGATE_INVOICE_TEMPLATE names, or unset it; application/pdf needs no template."
    )
    return TemplateBrokenError(message, Issue(code="invoice_template_broken", message=message, hint=hint))
