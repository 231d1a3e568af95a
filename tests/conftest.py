"""What tests run on: a real PostgreSQL with the migrated schema, and real server processes.

TOLLGATE_TEST_DATABASE_URL points the tests at a PostgreSQL of one's own (its user must be allowed to create
databases); otherwise they start the embedded one.
"""

import gc
import itertools
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import settings
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.orm import Session

from api.migrations import migrate
from api.postgres import EmbeddedPostgres
from tests.server import Server, open_place

# Whoever starts the tests in the background may have them ignore Ctrl-C; then so would our servers.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The processes that run tests are measured, those that the tests start are not: it makes them slow.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)

settings.register_profile("tollgate", deadline=None, derandomize=True)
settings.load_profile("tollgate")

TEMPLATE = "tollgate_template"
# What takes longest, so that no process begins with one of them when the other has nothing left to do.
LONG = ("workers", "crash", "folding", "corrections", "usage", "serve", "cli", "schemathesis", "unbilled")
_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first, each whole and in its own order."""
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


def pytest_collection_finish() -> None:
    """What was imported stays: not to look through it for garbage again and again saves a tenth."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server, one for each process that runs tests."""
    if url := os.environ.get("TOLLGATE_TEST_DATABASE_URL"):
        yield url
        return
    with open_place() as place, EmbeddedPostgres(place / "data") as postgres:
        yield postgres.url


@pytest.fixture(scope="session")
def template(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database that others are copied from."""
    name = f"{TEMPLATE}_{os.getpid()}"
    _administer(postgres_url, f"CREATE DATABASE {name}")
    engine = create_engine(_named(postgres_url, name))
    migrate(engine)
    engine.dispose()
    yield name
    _administer(postgres_url, f"DROP DATABASE {name}")


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """A fresh, migrated database."""
    yield from _copied(postgres_url, template)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A fresh database that no migration has seen."""
    yield from _copied(postgres_url, "template1")


@pytest.fixture(scope="module")
def shared_database_url(postgres_url: str, template: str) -> Iterator[str]:
    """A migrated database that a module's tests share."""
    yield from _copied(postgres_url, template)


def _copied(postgres_url: str, template: str) -> Iterator[str]:
    name = f"tollgate_test_{os.getpid()}_{next(_numbers)}"
    _administer(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _named(postgres_url, name)
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def _named(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)


def _administer(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url, connect_args={"options": "-c timezone=UTC"})
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def shared_engine(shared_database_url: str) -> Iterator[Engine]:
    engine = create_engine(shared_database_url, connect_args={"options": "-c timezone=UTC"})
    yield engine
    engine.dispose()


@pytest.fixture
def session(shared_engine: Engine) -> Iterator[Session]:
    """One transaction on the module's database, rolled back at the end, whatever the test commits."""
    with shared_engine.connect() as connection, connection.begin() as transaction:
        with Session(connection, expire_on_commit=False, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()


@pytest.fixture(scope="module")
def server(shared_database_url: str) -> Iterator[Server]:
    """A server process that a module's tests share."""
    with Server(environment={"TOLLGATE_DATABASE_URL": shared_database_url}) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    """Talks to the module's server with an admin key."""
    with server.client() as client:
        yield client


@pytest.fixture
def now() -> datetime:
    """A fixed instant for operations that are told the time."""
    return datetime(2026, 3, 15, 12, 0, tzinfo=UTC)


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory where the embedded PostgreSQL can live, whoever runs the tests."""
    with open_place() as place:
        yield place


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
