"""The schema, brought up to date at every start, once however many processes start together."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from metering.errors import ConflictError

__all__ = ["current_and_head", "migrate"]

_LOCK = 0x746F6C6C  # "toll": the advisory lock that one migrating process holds
_HERE = Path(__file__).resolve().parent
_DIRECTORIES = (_HERE / "alembic", _HERE.parent / "alembic")


class NewerSchemaError(ConflictError):
    pass


def migrate(engine: Engine) -> bool:
    """Apply every migration that is missing; whether there was one. Others that start wait here."""
    with _locked(engine) as connection:
        current, head = _revisions(connection)
        if current == head:
            return False
        if current is not None and current not in _known():
            raise NewerSchemaError(
                f"the database is at migration {current}, which this version of Tollgate does not know:"
                " it was used by a newer one, so start that one"
            )
        command.upgrade(_config(connection), "head")
        connection.commit()
        return True


def current_and_head(engine: Engine) -> tuple[str | None, str | None]:
    """The revision that the database has, and the one that this code wants."""
    with engine.connect() as connection:
        return _revisions(connection)


@contextmanager
def _locked(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        connection.execute(text("SET statement_timeout = 0"))  # waiting for others, or for a long migration
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
        connection.commit()
        try:
            yield connection
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
            connection.execute(text("RESET statement_timeout"))
            connection.commit()


def _revisions(connection: Connection) -> tuple[str | None, str | None]:
    current = MigrationContext.configure(connection).get_current_revision()
    return current, _scripts().get_current_head()


def _known() -> set[str]:
    return {script.revision for script in _scripts().walk_revisions()}


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config(connection: Connection | None = None) -> Config:
    """Installed, the migrations lie inside this package; in a checkout, beside it."""
    config = Config()
    config.set_main_option("script_location", str(next(path for path in _DIRECTORIES if path.is_dir())))
    config.attributes["connection"] = connection
    return config
