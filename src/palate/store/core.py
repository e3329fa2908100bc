"""A project's store: facts and media that are on disk when a call returns, and the work of raters.

    with Store.open("people", create=True) as store:
        store.add_samples(samples)
        store.add_comparisons(comparisons)
        rater, token = store.add_rater("Ada")
        lease, = store.lease(rater, 1)
        store.answer(rater, lease.id, "key-1", {"overall": "left"})
        rows = views.preferences(store.samples(), store.votes())

All methods may be called from many threads. Raises StoreError, one line that names what it is about, throughout.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa

from palate import durable, project
from palate.media import MediaError
from palate.project import ProjectSettings
from palate.records import Comparison, Medium, Ranking, Retraction, Sample, Score, Vote, now
from palate.store import (
    adding,
    amending,
    answers,
    facts,
    leases,
    leasing,
    medium,
    progress,
    raters,
    schema,
    snapshots,
    upgrade,
)
from palate.store.amending import Amendment
from palate.store.answers import Answer, Receipt
from palate.store.database import FILE, Database, Postgres, Result, SQLite
from palate.store.errors import StoreError
from palate.store.facts import Kind
from palate.store.leases import Lease
from palate.store.progress import Progress
from palate.store.raters import Rater
from palate.store.sessions import Sessions
from palate.store.snapshots import Snapshot

SWEEP_SECONDS = 1.0  # between two looks, along with answers, for leases that ran out


class Store:
    """See the module. settings: of the project. folder: where it lies."""

    def __init__(self, folder: Path, settings: ProjectSettings, database: Database, writable: bool) -> None:
        self.folder, self.settings = folder, settings
        self._database, self._writable = database, writable
        self._held = contextlib.ExitStack()
        self._sessions = Sessions()
        self._swept = -math.inf

    @classmethod
    def open(cls, folder: str | Path, create: bool = False, write: bool = True) -> Store:
        """The store of a project folder, brought to this Palate's schema.

        create: make the folder if there is none. write: False only reads, also while another process writes; a SQLite
        project has one writing process at a time. Raises ConfigError for no project or settings that cannot be,
        StorageError if another process writes, StoreError if the database cannot be trusted or is of a newer Palate.
        """
        folder = Path(folder)
        settings = project.create(folder) if create else project.read(folder)
        url = project.database_url(folder, settings)
        with contextlib.ExitStack() as held:
            if url is None and write:
                held.enter_context(durable.locked(folder, "process that writes to this project"))
            if url is None and not write and not (folder / FILE).is_file():
                raise StoreError(f"{folder} holds no {FILE} yet: nothing was added to the project")
            database: Database = Postgres(url) if url else SQLite(folder, writable=write)
            held.callback(database.close)
            store = cls(folder, settings, database, write)
            store._prepare()
            if write and url is None:
                medium.sweep(folder)
            store._held = held.pop_all()
        return store

    def _prepare(self) -> None:
        if self._writable:
            upgrade.upgrade(self._database)
            self._write(self._claim)
            return
        with self._database.read() as connection:
            if upgrade.require(self._database, connection) != upgrade.HEAD:
                raise StoreError(f"{self._database.name} has an older schema: open it once for writing to renew it")

    def _claim(self, connection: sa.Connection) -> None:
        """Notes whose database it is. Raises StoreError if it is another project's."""
        owner = connection.scalar(sa.select(schema.project.c.id))
        if owner is None:
            connection.execute(sa.insert(schema.project).values(id=self.settings.id, time=now()))
        elif owner != self.settings.id:
            raise StoreError(f"{self._database.name} belongs to another project than {self.folder}: give each its own")

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, job: Callable[[sa.Connection], Result], *, wipe: bool = False) -> Result:
        if not self._writable:
            raise StoreError(f"{self.folder} was opened for reading only: open it with write=True")
        return self._database.write(job, wipe=wipe)

    # --- media --------------------------------------------------------------------------------------------------------

    def add_media(self, data: bytes, type: str) -> Medium:
        """Keeps a medium under its content's hash; its path is relative to the folder. The same bytes are kept once.

        PNG, JPEG, WebP, MP4, WebM, WAV, FLAC, MP3 and plain text. Raises MediaError for anything else, what is not of
        its type, damaged or too large.
        """
        medium.checked(data, type)
        sha256, path = medium.keep(self.folder, data, type)
        self._write(lambda connection: medium.note(connection, sha256, type, len(data)))
        return Medium(type, path=path)

    def read_media(self, medium_of: Medium) -> bytes:
        """The bytes of a medium, which are what they were when it came in."""
        return medium.read(self.folder, medium_of)

    def media_file(self, sha256: str, rater: str | None = None) -> tuple[Path, str] | None:
        """Where the medium of that hash lies, and its type; None for anything the database does not list.

        rater: None, too, for what is part of no comparison that this rater was given.
        """
        with self._database.read() as connection:
            found = medium.find(connection, sha256) if rater is None else medium.given(connection, sha256, rater)
        return None if found is None else (self.folder / found[0], found[1])

    def media_to_show(self) -> list[tuple[str, str, str]]:
        """Hash, path below the folder and type of the media of all comparisons that wait, the next ones first."""
        with self._database.read() as connection:
            return medium.to_show(connection)

    # --- adding facts -------------------------------------------------------------------------------------------------

    def add_samples(self, samples: Iterable[Sample], batch: str = "") -> int:
        """Adds samples with their media, as bytes or as `add_media` returned them; how many were new.

        Each of the `add_` methods knows a fact again by its id, adds it once, raises StoreError for another content
        under a known id, and has all of it on disk when it returns. batch: what they were made for, such as a round.
        """

        def rows_of(part: list[Sample]) -> adding.Rows:
            return [(facts.SAMPLES.row(sample) | {"batch": batch}, *self._kept(sample)) for sample in part]

        return self._in_parts(samples, adding.samples, rows_of, 100)

    def _kept(self, sample: Sample) -> tuple[str, str, int]:
        """Hash, type and size of a sample's medium, of which the file is on disk."""
        kind, content = sample.medium.type, sample.medium.bytes
        try:
            if content is None:
                sha256 = medium.hash_of(sample.medium)
                found = self.media_file(sha256)
                if found is None:
                    raise StoreError(f"medium {sample.medium.path} is not of this project: add it by add_media")
                return sha256, found[1], found[0].stat().st_size
            medium.checked(content, kind)
        except (MediaError, StoreError) as error:
            raise type(error)(f"sample {sample.id!r}: {error}") from None
        return medium.keep(self.folder, content, kind)[0], kind, len(content)

    def add_scores(self, scores: Iterable[Score]) -> int:
        """A score is known again by sample, source, dimension and time."""
        return self._in_parts(scores, adding.scores)

    def add_votes(self, votes: Iterable[Vote]) -> int:
        return self._in_parts(votes, adding.votes)

    def add_rankings(self, rankings: Iterable[Ranking]) -> int:
        return self._in_parts(rankings, adding.rankings)

    def add_retractions(self, retractions: Iterable[Retraction]) -> int:
        """Takes votes or rankings back that were not given in the studio; those are taken back by `undo`."""
        return self._in_parts(retractions, adding.retractions)

    def add_comparisons(self, comparisons: Iterable[Comparison]) -> int:
        """What raters are to be shown; their samples must be of the comparison's prompt."""
        return self._in_parts(comparisons, adding.comparisons)

    def amend(self, amendments: Iterable[Amendment], source: str) -> int:
        """Says which comparisons are known pairs or sensitive, also while raters are at work; how many it changed.

        source: who says so. What was answered of a known pair is not counted from then on, and is again once it is none
        any more. Raises StoreError for a comparison that is not there, or an expected sample that it does not show.
        """
        return sum(self._write(partial(amending.amend, part=part, source=source)) for part in facts.chunks(amendments))

    def _in_parts(
        self,
        records: Iterable[Any],
        add: Callable[[sa.Connection, Any], int],
        made: Callable[[list[Any]], Any] = lambda part: part,
        size: int = facts.PAGE,
    ) -> int:
        return sum(self._write(partial(_swapped, add, made(part))) for part in facts.chunks(records, size))

    # --- reading facts ------------------------------------------------------------------------------------------------

    def samples(
        self,
        prompt: str | None = None,
        source: str | None = None,
        batch: str | None = None,
        snapshot: Snapshot | None = None,
    ) -> Iterator[Sample]:
        """In order of arrival, as are all facts; with a snapshot, those in it."""
        wanted = {"prompt": prompt, "source": source, "batch": batch}
        return self._facts(facts.SAMPLES, facts.sample_query(), wanted, snapshot)

    def scores(self, source: str | None = None, snapshot: Snapshot | None = None) -> Iterator[Score]:
        return self._facts(facts.SCORES, sa.select(schema.scores), {"source": source}, snapshot)

    def votes(
        self, dimension: str | None = None, retracted: bool = False, snapshot: Snapshot | None = None
    ) -> Iterator[Vote]:
        """retracted: with those that were taken back, too. Repeats are among them, marked."""
        query = sa.select(schema.votes)
        query = query if retracted else query.where(facts.not_retracted(schema.votes, _mark(snapshot, "retractions")))
        return self._facts(facts.VOTES, query, {"dimension": dimension}, snapshot)

    def rankings(
        self, dimension: str | None = None, retracted: bool = False, snapshot: Snapshot | None = None
    ) -> Iterator[Ranking]:
        query = sa.select(schema.rankings)
        query = (
            query if retracted else query.where(facts.not_retracted(schema.rankings, _mark(snapshot, "retractions")))
        )
        return self._facts(facts.RANKINGS, query, {"dimension": dimension}, snapshot)

    def comparisons(self, batch: str | None = None, snapshot: Snapshot | None = None) -> Iterator[Comparison]:
        """As they are by now amended; with a snapshot, as they were."""
        query = facts.comparison_query(_mark(snapshot, "amendments"))
        return self._facts(facts.COMPARISONS, query, {"batch": batch}, snapshot)

    def retractions(self, snapshot: Snapshot | None = None) -> Iterator[Retraction]:
        return self._facts(facts.RETRACTIONS, sa.select(schema.retractions), {}, snapshot)

    def _facts(
        self, kind: Kind, query: sa.Select[Any], wanted: Mapping[str, str | None], snapshot: Snapshot | None
    ) -> Iterator[Any]:
        for name, value in wanted.items():
            if value is not None:
                query = query.where(kind.table.c[name] == value)
        mark = _mark(snapshot, kind.table.name)
        return (kind.record(row) for row in facts.pages(self._database, query, kind.table.c.seq, mark))

    # --- raters -------------------------------------------------------------------------------------------------------

    def add_rater(self, name: str, role: raters.Role = "rater", expires: str | None = None) -> tuple[str, str]:
        """A new rater's id and token. The token is told this once: only its hash is kept.

        expires: ISO 8601, with its offset from UTC.
        """
        return self._write(lambda connection: raters.add(connection, name, role, expires))

    def rater_of(self, token: str) -> Rater | None:
        """Whose token it is; None if it is nobody's, revoked or expired."""
        changes = self._sessions.changes
        with self._database.read() as connection:
            found = raters.of_token(connection, token)
        self._sessions.keep(token, found, changes)
        return found

    def rater_lately_of(self, token: str) -> Rater | None:
        """Whose token `rater_of` found it to be at most `sessions.SECONDS` ago, from memory; None if it did not.

        What this store changed since is known; what another process did, a revocation too, only when they are over.
        """
        return self._sessions.get(token)

    def raters(self) -> list[Rater]:
        """All but the erased, in order of arrival."""
        table = schema.raters
        query = sa.select(table).where(table.c.token.is_not(None)).order_by(table.c.time, table.c.id)
        with self._database.read() as connection:
            return [raters.record(row) for row in connection.execute(query)]

    def revoke(self, rater: str) -> None:
        """Their token lets nobody in any more; what they said stays."""
        self._change_rater(lambda connection: raters.change(connection, rater, {"revoked": True}))

    def set_preference(self, rater: str, *, blur: bool | None = None, opted_out: bool | None = None) -> None:
        """blur: sensitive media until looked at. opted_out: spared sensitive comparisons altogether."""
        values = {name: value for name, value in (("blur", blur), ("opted_out", opted_out)) if value is not None}
        if values:
            self._change_rater(lambda connection: raters.change(connection, rater, values))

    def erase(self, rater: str, votes: bool = False) -> int:
        """Forgets who a rater was and, with `votes`, deletes all they said; how many facts went. Itself recorded.

        Their places are free again. Snapshots that held their votes can no longer be given. SQLite overwrites what it
        deletes at once, PostgreSQL when it next cleans its tables.
        """
        return self._change_rater(lambda connection: raters.erase(connection, rater, votes), erases=True)

    def _change_rater(self, job: Callable[[sa.Connection], Result], *, erases: bool = False) -> Result:
        try:
            return self._write(job, wipe=erases)
        finally:
            self._sessions.forget()

    # --- judging ------------------------------------------------------------------------------------------------------

    def lease(self, rater: str, n: int = 2, now: float | None = None) -> list[Lease]:
        """Up to n comparisons for this rater: those they hold, then new ones; empty if there is nothing left for them.

        Who asked to be spared what is sensitive is given nothing of it, nor what they held of it before. now: seconds
        since 1970, the clock's by default.
        """
        at = time.time() if now is None else now
        self._expire(at)
        return list(leasing.lease(self._database, self._write, rater, n, at, self.settings))

    def _expire(self, at: float, every: float = 0.0) -> None:
        """Gives the places of leases that ran out back, at most so often."""
        if not 0 <= at - self._swept < every:
            self._swept = at
            leasing.expire(self._database, self._write, at)

    def answer(
        self,
        rater: str,
        lease: str,
        key: str,
        answers_of: Mapping[str, Answer],
        seconds: float | None = None,
        reason: str = "",
        now: float | None = None,
        n: int = 0,
    ) -> Receipt:
        """Stores a rater's answers to the questions of one lease, all or none; on disk when this returns.

        key: the rater's own for this answer; sent again it counts once. answers_of: by dimension, what was chosen as it
        was shown: left, right, tie, both_bad or skip; or a ranking, groups of places from 0, the best group first:
        [[2], [0, 1]]. both_bad of several: none is any good, a vote on each pair of them. seconds: it took. reason: of
        a skip. n: in the same transaction the rater is then leased up to so many, as `lease` does it, whatever became
        of the answer; the receipt tells the new ones.
        """
        given = answers.Given(rater, lease, key, answers_of, seconds, reason)
        given.check(self.settings)
        at = time.time() if now is None else now
        receipt = self._write(lambda connection: answers.answer(connection, given, at, self.settings, n))
        if n:
            self._expire(at, SWEEP_SECONDS)  # behind it: an answer that is a little late finds its place as it was
        return receipt

    def undo(self, rater: str, key: str, now: float | None = None) -> Receipt:
        """Takes the rater's latest answer back, which stays as a fact, retracted; its lease is open again.

        key: the rater's own for this undo; sent again it counts once.
        """
        answers.check_key(key)
        expires = (time.time() if now is None else now) + 60 * self.settings.lease_minutes
        return self._write(lambda connection: answers.undo(connection, rater, key, expires))

    def held(self, rater: str, now: float | None = None) -> list[Lease]:
        """The comparisons that wait for this rater; none is given anew."""
        at = time.time() if now is None else now
        with self._database.read() as connection:
            return leases.filled(connection, leases.held(connection, rater, at))

    def answered(self, rater: str) -> int:
        """How many answers of the rater stand, skips, known pairs and repeats included."""
        query = sa.select(schema.raters.c.answered).where(schema.raters.c.id == rater)
        with self._database.read() as connection:
            return connection.scalar(query) or 0

    def progress(self) -> Progress:
        """How far the raters have come, from counts alone."""
        with self._database.read() as connection:
            return progress.count(connection)

    def telling(self) -> int:
        """How many comparisons show videos of several types, by which raters can tell those apart."""
        with self._database.read() as connection:
            return progress.telling(connection)

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def snapshot(self, name: str | None = None) -> Snapshot:
        """The facts as they are now, by which they can be read again whatever comes in.

        A store that only reads gives one, too, but cannot note its name and time. Raises StoreError for a name that is
        another snapshot's.
        """
        if self._writable:
            return self._write(lambda connection: snapshots.take(connection, self.settings.id, name, True))
        if name is not None:
            raise StoreError(f"{self.folder} was opened for reading only: a snapshot's name cannot be noted")
        with self._database.read() as connection:
            return snapshots.take(connection, self.settings.id, None, False)

    def marks(self) -> Mapping[str, int]:
        """The last row of each kind of fact: other than before when something came in or was erased."""
        with self._database.read() as connection:
            return snapshots.take(connection, self.settings.id, None, False).marks

    def find_snapshot(self, wanted: str) -> Snapshot:
        """By id or name. Raises StoreError if there is none, or votes in it were erased since."""
        with self._database.read() as connection:
            return snapshots.find(connection, self.settings.id, wanted)


def _mark(snapshot: Snapshot | None, table: str) -> int | None:
    return None if snapshot is None else snapshot.marks[table]


def _swapped(add: Callable[[sa.Connection, Any], int], part: Any, connection: sa.Connection) -> int:
    return add(connection, part)
