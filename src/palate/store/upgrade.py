"""A database is brought to the schema of this Palate, in one transaction: a cut leaves the old schema or the new."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from palate.store.database import Database
from palate.store.errors import StoreError

HEAD = "0003"  # the latest step in migrations/versions
KNOWN = (None, "0001", "0002", "0003")  # in order; None is an empty database
_VERSION = "alembic_version"


def version(connection: sa.Connection) -> str | None:
    """Which schema the database has, None if it is empty. Raises StoreError for tables that are not ours."""
    tables = sa.inspect(connection).get_table_names()
    if _VERSION not in tables:
        if tables:
            raise StoreError(
                f"the database holds {tables[0]} and other tables of its own: give the project an empty one"
            )
        return None
    found = connection.exec_driver_sql(f"SELECT version_num FROM {_VERSION}").scalar()
    return str(found) if found is not None else None


def require(database: Database, connection: sa.Connection) -> str | None:
    """The schema's version. Raises StoreError if a newer Palate made it."""
    found = version(connection)
    if found not in KNOWN:
        raise StoreError(
            f"{database.name} has the schema {found} of a newer Palate, this one knows up to {HEAD}: update Palate"
        )
    return found


def upgrade(database: Database) -> None:
    """Runs the steps that are missing. Raises StoreError if the database is of a newer Palate."""
    with database.read() as connection:
        if require(database, connection) == HEAD:
            return
    database.write(lambda connection: _run(database, connection))


def _run(database: Database, connection: sa.Connection) -> None:
    if require(database, connection) == HEAD:  # another process was faster
        return
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    steps = ScriptDirectory(str(Path(__file__).parent / "migrations"))
    with EnvironmentContext(Config(), steps, fn=lambda revision, _: steps._upgrade_revs(HEAD, revision)) as environment:
        # On the connection that is given, in the transaction that is open on it.
        environment.configure(connection=connection, transactional_ddl=True, render_as_batch=True)
        environment.run_migrations()
