"""The command line: `tollgate serve | api | worker | migrate | keys | cubes | catalog | doctor | ...`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from sqlalchemy.orm import Session

from api import (
    audit_command,
    backtest_command,
    bill_command,
    catalog_commands,
    clock,
    cube_commands,
    demo,
    doctor,
    keys,
)
from api.logs import configure_logs
from api.migrations import migrate as run_migrations
from api.postgres import EmbeddedPostgresError
from api.serve import database, serve_api, work
from api.serve import serve as run_server
from api.settings import MOST, Settings, from_environment, instant_of
from metering.errors import TollgateError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Usage metering and billing.",
)
key_commands = typer.Typer(no_args_is_help=True, help="API keys: who may call the server, and do what.")
app.add_typer(key_commands, name="keys")
cubes = typer.Typer(no_args_is_help=True, help="Usage cubes: what makes questions about usage fast.")
app.add_typer(cubes, name="cubes")
catalog = typer.Typer(no_args_is_help=True, help="The catalog as a file: features, add-ons and plans.")
app.add_typer(catalog, name="catalog")
bill = typer.Typer(no_args_is_help=True, help="Billing by hand; a server's worker bills by itself.")
app.add_typer(bill, name="bill")
invoice = typer.Typer(no_args_is_help=True, help="One invoice: prove it.")
app.add_typer(invoice, name="invoice")

Host = Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on [8888]; 0: any free one.")
]
NoAuth = Annotated[bool, typer.Option("--no-auth", help="No keys; loopback only.")]
Inherited = Annotated[int | None, typer.Option(hidden=True)]
DataDir = Annotated[Path | None, typer.Option(help="Where the embedded PostgreSQL lives [.tollgate].")]
Role = Annotated[keys.Role, typer.Option(help="ingest (report usage), read, or admin.")]


def main() -> None:
    """Every failure that a person can mend is one line on standard error and status 1."""
    configure_logs()
    try:
        app()
    except (TollgateError, EmbeddedPostgresError) as error:
        print(f"tollgate: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _settings(data_dir: Path | None) -> Settings:
    settings = from_environment()
    return replace(settings, data_dir=data_dir) if data_dir else settings


@app.command()
def serve(
    *,
    host: Host = None,
    port: Port = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="API processes [1]; with 2 or more the worker has its own."),
    ] = None,
    data_dir: DataDir = None,
    no_auth: NoAuth = False,
    test_clock: Annotated[
        str | None,
        typer.Option(help="On a new database: time begins at this instant, and moves when it is advanced."),
    ] = None,
) -> None:
    """Run the server, with its own PostgreSQL unless TOLLGATE_DATABASE_URL names one."""
    settings = _listening(_settings(data_dir), host, port, no_auth=no_auth)
    begin = instant_of(test_clock) if test_clock else settings.test_clock
    run_server(replace(settings, workers=workers or settings.workers, test_clock=begin))


@app.command()
def api(
    host: Host = None,
    port: Port = None,
    no_auth: NoAuth = False,
    inherit: Inherited = None,
    lifeline: Inherited = None,
) -> None:
    """Run one API process on the database that TOLLGATE_DATABASE_URL names: for several machines."""
    settings = _listening(from_environment(), host, port, no_auth=no_auth)
    serve_api(settings, inherited=inherit, lifeline=lifeline)


@app.command()
def worker(lifeline: Inherited = None) -> None:
    """Run one worker on the database that TOLLGATE_DATABASE_URL names: for several machines."""
    work(from_environment(), lifeline=lifeline)


def _listening(settings: Settings, host: str | None, port: int | None, *, no_auth: bool) -> Settings:
    return replace(
        settings,
        host=host or settings.host,
        port=settings.port if port is None else port,
        auth=settings.auth and not no_auth,
    )


@app.command()
def migrate(data_dir: DataDir = None) -> None:
    """Bring the schema up to date; `serve` does so by itself."""
    with database(_settings(data_dir), share=True) as engine:
        print("Migrated." if run_migrations(engine) else "The schema is up to date.")


@app.command(name="doctor")
def run_doctor(data_dir: DataDir = None) -> None:
    """Check all that a person would check, and say what to do."""
    if not doctor.examine(_settings(data_dir), Console()):
        raise SystemExit(1)


@app.command(name="demo")
def run_demo(
    leave: Annotated[bool, typer.Option("--exit", help="Stop at the end instead of serving on.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Start a server, send it a minute of gateway traffic, and show the invoice preview."""
    demo.run(from_environment(), leave=leave, data_dir=data_dir)


@contextmanager
def _session(data_dir: Path | None) -> Iterator[Session]:
    with database(_settings(data_dir), share=True) as engine:
        run_migrations(engine)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session


@key_commands.command(name="create")
def create_key(
    role: Role, name: Annotated[str, typer.Option(help="What it is for.")] = "", data_dir: DataDir = None
) -> None:
    """Make a key and print it, this once."""
    with _session(data_dir) as session:
        key, text = keys.create_key(session, name=name or role, role=role, now=clock.now())
    print(f"{text}\n({key.role} key {key.id}; it is not shown again)")


@key_commands.command(name="list")
def list_keys(data_dir: DataDir = None) -> None:
    """Show all keys, never their text."""
    with _session(data_dir) as session:
        for key in keys.list_keys(session):
            until = f"revoked {key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "works"
            made = f"{key.created_at:%Y-%m-%d %H:%M}"
            print(f"{key.id}  {key.role:6}  {key.hint}…  made {made}, {until}  {key.name}")


@key_commands.command(name="revoke")
def revoke_key(key_id: str, data_dir: DataDir = None) -> None:
    """Stop a key from working, in a running server within seconds."""
    with _session(data_dir) as session:
        keys.revoke_key(session, key_id, now=clock.now())
    print(f"Revoked {key_id}.")


@cubes.command(name="check")
def check_cubes(data_dir: DataDir = None) -> None:
    """Compare every cube with the events; a running server may go on."""
    with database(_settings(data_dir), share=True) as engine:
        run_migrations(engine)
        wrong = cube_commands.check(engine)
    print("\n".join(wrong) or "Every cube is what its events add up to.")
    if wrong:
        raise SystemExit(1)


@cubes.command(name="rebuild")
def rebuild_cubes(data_dir: DataDir = None) -> None:
    """Build every cube from zero; a running server may go on, and answers exactly."""
    with database(_settings(data_dir), share=True) as engine:
        run_migrations(engine)
        count = cube_commands.rebuild(engine, now=clock.now())
    print(f"Built {count} cubes.")


Catalog = Annotated[Path, typer.Argument(metavar="FILE", help="The catalog, as YAML.")]
Prune = Annotated[bool, typer.Option("--prune", help="Archive what is for sale and not in the file.")]


@catalog.command(name="export")
def export_catalog(
    file: Annotated[Path | None, typer.Argument(help="Where to; standard output if none is named.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write what is for sale as YAML."""
    with database(_settings(data_dir), share=True) as engine:
        run_migrations(engine)
        catalog_commands.export(engine, file)


@catalog.command(name="plan")
def plan_catalog(
    file: Catalog,
    prune: Prune = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Status 2 if there are changes.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show what apply would change, and change nothing."""
    with database(_settings(data_dir), share=True) as engine:
        run_migrations(engine)
        changes = catalog_commands.plan(engine, file, prune=prune)
    if changes and exit_code:
        raise SystemExit(2)


@catalog.command(name="apply")
def apply_catalog(
    file: Catalog,
    prune: Prune = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Make the catalog what the file says, all of it or nothing; shows what changes, and asks."""
    with database(_settings(data_dir), share=True) as engine:
        run_migrations(engine)
        catalog_commands.apply(engine, file, prune=prune, confirm=None if yes else catalog_commands.ask)


@app.command(name="backtest")
def run_backtest(
    plan: Annotated[str, typer.Argument(help="Its id, or its key: then the latest version, a draft too.")],
    start: Annotated[str, typer.Option("--from", help="2026-01-01, or an instant in ISO 8601.")],
    end: Annotated[str, typer.Option("--to", help="Charges count whose period begins before it.")],
    csv: Annotated[Path | None, typer.Option(help="Write a row for every customer to this file.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Price a plan over the real usage of a past window, against what was billed."""
    begin, until = instant_of(start), instant_of(end)
    with database(_settings(data_dir), share=True) as engine:
        run_migrations(engine)
        backtest_command.run(engine, plan, start=begin, end=until, file=csv, now=clock.now())


@bill.command(name="run")
def run_billing(
    now: Annotated[
        str | None, typer.Option(help="Bill what was due by then; the present if left out.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it, and change nothing.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many customers.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Bill all that has fallen due, as the worker does by itself; status 1 if that failed for somebody."""
    by = instant_of(now) if now else None
    with database(_settings(data_dir), share=True) as engine:
        run_migrations(engine)
        billed = bill_command.run(engine, now=by, dry_run=dry_run, limit=limit)
    if not billed:
        raise SystemExit(1)


@invoice.command(name="replay")
def replay_invoice(
    invoice_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, or its number.")],
    data_dir: DataDir = None,
) -> None:
    """Compute an issued invoice again from what is stored with its lines; status 1 if a digit differs."""
    with database(_settings(data_dir), share=True) as engine:
        run_migrations(engine)
        identical = audit_command.replay(engine, invoice_id)
    if not identical:
        raise SystemExit(1)


@app.command(name="audit")
def run_audit(
    since: Annotated[
        str | None, typer.Option(help="Leave out usage of periods that ended before, and older events.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Check everything that was billed and change nothing; status 1 if something is wrong."""
    after = instant_of(since) if since else None
    with database(_settings(data_dir), share=True) as engine:
        run_migrations(engine)
        sound = audit_command.run(engine, since=after, as_json=as_json)
    if not sound:
        raise SystemExit(1)
