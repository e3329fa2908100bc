"""Connections that keep what they acknowledge, one writer at a time: SQLite, or PostgreSQL for several processes.

Calls that wait for the writer at the same time share one transaction and its sync (group commit); none returns before
the sync. If one of them fails, each is run again in a transaction of its own.

SQLite runs in WAL mode with synchronous=FULL. Exactly one connection of one process may write or checkpoint; all others
are read-only. So the corruption that SQLite before 3.51.3 can meet, two connections resetting the log at once, cannot
come about. With PostgreSQL an advisory lock makes the writers of all processes take turns: no two race for a row or
wait for each other in a circle, and facts arrive in the order of their numbers.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from palate.store.errors import StoreError, StoreFull, StoreUnavailable

FILE = "palate.db"
BUSY_MS = 10_000
_WRITER = "SELECT pg_advisory_xact_lock(20417389)"  # until the transaction ends, or the server finds its process gone
_LOCK_S = 30  # that a writer waits for the one before it
_IDLE_S = 60  # that a writer may do nothing while others wait
Result = TypeVar("Result")
Job = Callable[[sa.Connection], Any]


class _Ticket(Generic[Result]):
    """A job that waits for the writer, and what became of it."""

    def __init__(self, job: Callable[[sa.Connection], Result], wipe: bool) -> None:
        self.job, self.wipe = job, wipe
        self.called = threading.Event()  # it is done, or its caller is to serve
        self.done = False
        self.result: Result | None = None
        self.error: BaseException | None = None


class Database:
    """One project's database. `write` runs a job in a transaction that is durable when it returns, `read` one without.

    name: for errors, never with a password.
    """

    name: str
    group = 64  # calls that share a transaction at most

    def __init__(self) -> None:
        self._line = threading.Lock()
        self._waiting: list[_Ticket[Any]] = []
        self._serving = False

    def write(self, job: Callable[[sa.Connection], Result], *, wipe: bool = False) -> Result:
        """Runs job(connection) while nobody else writes; again if it was together with one that failed.

        wipe: what it deletes is then in no file of SQLite's; PostgreSQL overwrites it when it next cleans its tables.
        """
        ticket = _Ticket(job, wipe)
        with self._line:
            self._waiting.append(ticket)
            first, self._serving = not self._serving, True
        if not first:
            ticket.called.wait()
        if not ticket.done:
            self._serve()
        if ticket.error is not None:
            raise ticket.error
        return ticket.result  # type: ignore[return-value]

    def _serve(self) -> None:
        """Runs all that wait, the caller's own first, then leaves it to the caller of whatever came meanwhile."""
        with self._line:
            group, self._waiting = self._waiting[: self.group], self._waiting[self.group :]
        try:
            self._together(group)
        except BaseException as error:
            for ticket in group:
                if not ticket.done:
                    ticket.error, ticket.done = error, True
        finally:
            with self._line:
                following = self._waiting[:1]
                self._serving = bool(following)
            for ticket in group + following:
                ticket.called.set()

    def _together(self, group: list[_Ticket[Any]]) -> None:
        """One transaction for all; if a job fails, one for each. Raises what is no job's fault."""
        try:
            with explained(self.name), self._writer() as connection:
                for ticket in group:
                    ticket.result = ticket.job(connection)
        except StoreUnavailable:
            raise  # of the database: nothing of it is stored
        except Exception as error:
            if len(group) == 1:
                group[0].error, group[0].done = error, True
            else:
                for ticket in group:
                    self._together([ticket])
        else:
            for ticket in group:
                ticket.done = True
            if any(ticket.wipe for ticket in group):
                self._wipe()

    def _writer(self) -> AbstractContextManager[sa.Connection]:
        """A transaction of the one writer; durable when it ends, nothing when it fails."""
        raise NotImplementedError

    def _wipe(self) -> None:
        """Overwrites what was deleted, as far as it is the database's to say when."""

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        raise NotImplementedError
        yield

    def close(self) -> None:
        raise NotImplementedError


class SQLite(Database):
    """palate.db in a folder."""

    def __init__(self, folder: Path, *, writable: bool) -> None:
        super().__init__()
        self.path = folder / FILE
        self.name = str(self.path)
        self._reader = sa.create_engine(
            "sqlite://", creator=lambda: _connect(self.path, "ro"), poolclass=sa.QueuePool, pool_size=16
        )
        self._engine: sa.Engine | None = None
        if writable:
            self._engine = sa.create_engine(
                "sqlite://", creator=lambda: _connect(self.path, "rwc"), poolclass=sa.StaticPool
            )
            sa.event.listen(self._engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
            with contextlib.ExitStack() as refused:
                refused.callback(self.close)
                with explained(self.name), self._engine.connect() as connection:
                    _assert_durable(self.name, connection)
                refused.pop_all()

    def _writer(self) -> AbstractContextManager[sa.Connection]:
        if self._engine is None:
            raise StoreError(f"{self.name} was opened for reading only")
        return self._engine.begin()

    def _wipe(self) -> None:
        """Copies the log into the database and cuts it to nothing, unless a reader holds on to it: older pages are in
        it until then. On the one connection that writes, between its transactions."""
        assert self._engine is not None
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._engine.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").close()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with explained(self.name), self._reader.connect() as connection:
            yield connection

    def close(self) -> None:
        self._reader.dispose()
        if self._engine is not None:
            self._engine.dispose()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    if mode == "ro" and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
        uri += "&immutable=1"  # else SQLite makes files beside it, even to read
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    for pragma in (f"busy_timeout={BUSY_MS}", "foreign_keys=ON", "mmap_size=0"):
        connection.execute(f"PRAGMA {pragma}")
    if mode != "ro":
        safe = ("journal_mode=WAL", "synchronous=FULL", "fullfsync=ON", "checkpoint_fullfsync=ON")
        for pragma in (*safe, "secure_delete=ON"):  # what is deleted is overwritten with zeros
            connection.execute(f"PRAGMA {pragma}")
    return connection


def _assert_durable(name: str, connection: sa.Connection) -> None:
    """Raises StoreError if the database would acknowledge what a power cut takes away."""
    for pragma, wanted in (("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1)):
        found = connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()
        if found != wanted:
            raise StoreError(
                f"{name}: SQLite's {pragma} is {found}, and votes are safe with {wanted} alone; "
                "put the project on a local disk, or give it a PostgreSQL"
            )


class Postgres(Database):
    """A PostgreSQL by URL. Any number of processes may write, in turn."""

    group = 16  # a call takes longer than with SQLite, and who comes first should not wait for many

    def __init__(self, url: str) -> None:
        super().__init__()
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise StoreError("the database's URL cannot be read; write it as postgresql://user@host/name") from None
        if parsed.get_backend_name() != "postgresql":
            raise StoreError(f"{parsed.render_as_string(hide_password=True)} is no PostgreSQL: leave it out for SQLite")
        try:
            import psycopg  # noqa: F401
        except ImportError:
            raise StoreError("PostgreSQL needs psycopg: pip install 'palate[postgres]'") from None
        self.name = parsed._replace(password=None).render_as_string()
        self._engine = sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=16,
            max_overflow=32,
            pool_pre_ping=True,
            pool_use_lifo=True,  # the writer keeps its connection, and what the server has prepared for it
            isolation_level="READ COMMITTED",  # a writer that waited sees what the one before it left
        )
        sa.event.listen(self._engine, "connect", _settle)
        with contextlib.ExitStack() as refused:
            refused.callback(self._engine.dispose)
            with explained(self.name), self._engine.connect() as connection:
                for setting in ("fsync", "full_page_writes"):
                    if connection.exec_driver_sql(f"SHOW {setting}").scalar() != "on":
                        raise StoreError(
                            f"{self.name}: PostgreSQL runs with {setting}=off and would lose votes in a power cut; "
                            f"set {setting}=on in its postgresql.conf and start it again"
                        )
            refused.pop_all()

    @contextmanager
    def _writer(self) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            connection.exec_driver_sql(_WRITER)
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with explained(self.name), self._engine.connect() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()


def _settle(connection: Any, _: Any) -> None:
    """Turns an asynchronous commit, which acknowledges before the sync, back; stricter settings are left. And keeps
    a writer that hangs, or whose machine went away, from keeping all others waiting."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        if cursor.fetchone()[0] == "off":
            cursor.execute("SET synchronous_commit = on")
        cursor.execute(f"SET lock_timeout = '{_LOCK_S}s'")
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_S}s'")
    connection.commit()


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Errors of the database as one line that names it, without a password.

    Raises StoreUnavailable for those that are of the database's state, not of the statement: it is locked, its disk
    fails, its server went away or is shutting down, all its connections are taken. StoreError for a damaged file.
    """
    try:
        yield
    except StoreError:
        raise
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = getattr(error, "orig", None) or error
        if _is_full(cause):
            raise StoreFull(f"{name}: the disk is full, nothing was stored; make room and try again") from error
        if getattr(cause, "sqlite_errorname", "").startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            raise StoreError(
                f"{name} is damaged ({cause}): put a copy of it back, or save what is left by "
                f"`sqlite3 {name} .recover`; the media beside it are not touched"
            ) from error
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        if lost or isinstance(error, OperationalError | PoolTimeoutError | sqlite3.Error):
            said = " ".join(str(cause).split())
            raise StoreUnavailable(f"{name} cannot be used: {said}") from error
        raise


def _is_full(cause: BaseException) -> bool:
    codes = (getattr(cause, "sqlite_errorname", ""), getattr(cause, "sqlstate", ""))
    return codes[0] == "SQLITE_FULL" or codes[1] == "53100" or "disk is full" in str(cause)
