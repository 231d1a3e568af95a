"""The schema: made once however many start together, the same as the models, forwards and back again."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, inspect, text

import metering.cubes.tables  # noqa: F401  its tables
from api.migrations import current_and_head, migrate
from metering.database import Base
from metering.errors import ConflictError
from tests.server import ROOT, environment_of, refusal, tollgate, until


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Engine]:
    engine = create_engine(empty_database_url)
    yield engine
    engine.dispose()


def run(engine: Engine, what: Callable[..., object], *arguments: str) -> None:
    """An alembic command, on a connection to the engine's database."""
    with engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(ROOT / "alembic"))
        config.attributes["connection"] = connection
        what(config, *arguments)
        connection.commit()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def test_four_processes_that_migrate_one_empty_database_at_once_migrate_it_once(
    empty: Engine, empty_database_url: str
) -> None:
    environment = environment_of({"TOLLGATE_DATABASE_URL": empty_database_url})
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "api", "migrate"],
            env=environment,
            cwd=ROOT,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for _ in range(4)
    ]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in started]
    assert sorted(ended) == [("Migrated.\n", "", 0)] + 3 * [("The schema is up to date.\n", "", 0)]
    with empty.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM meters")).scalar_one() == 2


def test_migrating_again_changes_nothing(empty: Engine) -> None:
    assert migrate(empty)
    before = tables(empty)
    assert not migrate(empty)
    assert tables(empty) == before == {*Base.metadata.tables, "alembic_version"}
    current, head = current_and_head(empty)
    assert current == head is not None


def test_the_models_and_the_migrations_agree(empty: Engine) -> None:
    """`alembic check`: autogenerate finds nothing to do, and does once something is different."""
    migrate(empty)
    run(empty, command.check)
    with empty.begin() as connection:
        connection.execute(text("ALTER TABLE customers DROP COLUMN description"))
    with pytest.raises(CommandError, match="description"):
        run(empty, command.check)


def test_what_has_been_migrated_can_be_taken_back_and_made_again(empty: Engine) -> None:
    migrate(empty)
    run(empty, command.downgrade, "base")
    assert tables(empty) == {"alembic_version"}
    assert current_and_head(empty)[0] is None
    assert migrate(empty)
    run(empty, command.check)


def test_each_migration_can_be_taken_back_by_itself(empty: Engine) -> None:
    migrate(empty)
    steps = 0
    while current_and_head(empty)[0] is not None:
        run(empty, command.downgrade, "-1")
        steps += 1
    assert steps >= 2
    for _ in range(steps):
        run(empty, command.upgrade, "+1")
    run(empty, command.check)


def test_a_database_of_a_newer_version_is_refused_in_one_line_and_left_alone(
    empty: Engine, empty_database_url: str
) -> None:
    migrate(empty)
    with empty.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConflictError, match="9999"):
        migrate(empty)
    said = refusal("serve", "--port", "0", environment={"TOLLGATE_DATABASE_URL": empty_database_url})
    assert said.startswith("the database is at migration 9999, which this version of Tollgate does not know")
    assert current_and_head(empty)[0] == "9999"


def test_a_migration_that_is_killed_half_way_leaves_nothing_and_is_begun_again(
    empty: Engine, empty_database_url: str
) -> None:
    """It gets stuck on a table that another transaction is making, and dies there."""
    environment = {"TOLLGATE_DATABASE_URL": empty_database_url}

    def stuck() -> bool:
        query = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        with empty.connect() as watcher:
            return watcher.execute(text(query)).rowcount == 1

    with empty.connect() as other:
        other.execute(text("CREATE TABLE subscription_items (x int)"))
        migrating = subprocess.Popen(
            [sys.executable, "-m", "api", "migrate"], env=environment_of(environment), cwd=ROOT
        )
        until(stuck)
        migrating.kill()
        migrating.wait()
        other.rollback()
    assert tollgate("migrate", environment=environment).stdout == "Migrated.\n"
    run(empty, command.check)
