"""`tollgate catalog export | plan | apply`: the difference to a file, shown first, and then made.

~ plan pro: version 3 -> 4
    phases[0].rateCards[1].price.amount: 0.1 -> 0.2
1 change: 0 to add, 1 to change, 0 to archive.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import typer
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api import clock
from api.catalog_changes import Change, Changes, change_catalog
from api.catalog_export import export_catalog
from api.catalog_file import Catalog, read_catalog
from metering.errors import ConflictError, InvalidError

__all__ = ["CatalogChangedError", "apply", "ask", "export", "plan"]


class CatalogChangedError(ConflictError):
    """Somebody changed it between the question and the answer."""


def export(engine: Engine, path: Path | None) -> None:
    """Write what is for sale to the file, or to standard output."""
    with Session(engine) as session, session.begin():
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        content = export_catalog(session, now=clock.now())
    if path is None:
        typer.echo(content, nl=False)
        return
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InvalidError(f"can't write {path}: {error.strerror}") from None
    typer.echo(f"Wrote {path}.")


def plan(engine: Engine, path: Path, *, prune: bool) -> bool:
    """Show what apply would do; whether there is anything."""
    changes = _would_be(engine, read_catalog(path), prune=prune)
    typer.echo("\n".join(_told(changes)))
    return bool(changes.changes)


def apply(engine: Engine, path: Path, *, prune: bool, confirm: Callable[[str], bool] | None) -> None:
    """Show it, ask with `confirm` (None: don't ask), and do it: just what was shown, or nothing."""
    catalog = read_catalog(path)
    shown = _would_be(engine, catalog, prune=prune)
    typer.echo("\n".join(_told(shown)))
    if not shown.changes:
        return
    if confirm is not None and not confirm(_question(len(shown.changes))):
        raise InvalidError("nothing was changed")
    with Session(engine) as session, session.begin():
        if change_catalog(session, catalog, prune=prune, now=clock.now()) != shown:
            message = "the catalog was changed in the meantime, and nothing was done: look at it again"
            raise CatalogChangedError(message)
    typer.echo("Applied.")


def ask(question: str) -> bool:
    """A person at a terminal; nobody else can be asked."""
    if not sys.stdin.isatty():
        raise InvalidError("nobody is there to be asked, and nothing was changed: add --yes to apply it")
    return typer.confirm(question)


def _question(count: int) -> str:
    return "Apply this change?" if count == 1 else f"Apply these {count} changes?"


def _would_be(engine: Engine, catalog: Catalog, *, prune: bool) -> Changes:
    """The change itself, taken back: every rule is asked, and nothing stays."""
    with Session(engine) as session:
        changes = change_catalog(session, catalog, prune=prune, now=clock.now())
        session.rollback()
    return changes


def _told(found: Changes) -> Iterator[str]:
    for change in found.changes:
        yield f"{change.sign} {change.what}{': ' if change.how else ''}{change.how}"
        yield from (f"    {line}" for line in change.lines)
    if found.left:
        yield f"Not in the file, and left alone: {', '.join(found.left)}."
    yield _counted(found.changes) if found.changes else "Nothing to change."


def _counted(changes: tuple[Change, ...]) -> str:
    count = Counter(change.sign for change in changes)
    of = f"{len(changes)} change{'s' if len(changes) > 1 else ''}"
    return f"{of}: {count['+']} to add, {count['~']} to change, {count['-']} to archive."
