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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa

from palate import durable, project
from palate.media import MediaError
from palate.project import ProjectSettings
from palate.records import Comparison, Medium, Ranking, Retraction, Sample, Score, Vote, now
from palate.store import answers, facts, leases, medium, raters, schema, snapshots, upgrade
from palate.store.answers import Answer, Receipt
from palate.store.database import Database, Postgres, SQLite
from palate.store.errors import StoreError
from palate.store.facts import Kind
from palate.store.leases import Lease
from palate.store.raters import Rater
from palate.store.snapshots import Snapshot


@dataclass(frozen=True)
class Progress:
    """How far the raters have come; known pairs and repeats are not counted.

    comparisons, done: in all, and those that every wanted rater judged. wanted, votes: judgements of a comparison by a
    rater. raters: judgements by rater id. open: leases that wait for their raters.
    """

    comparisons: int
    done: int
    wanted: int
    votes: int
    raters: Mapping[str, int]
    open: int


class Store:
    """See the module. settings: of the project. folder: where it lies."""

    def __init__(self, folder: Path, settings: ProjectSettings, database: Database, writable: bool) -> None:
        self.folder, self.settings = folder, settings
        self._database, self._writable = database, writable
        self._held = contextlib.ExitStack()

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
            if url is None and not write and not (folder / "palate.db").is_file():
                raise StoreError(f"{folder} holds no palate.db yet: nothing was added to the project")
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

    def _write(self, job: Callable[[sa.Connection], Any], *, alone: bool = False) -> Any:
        if not self._writable:
            raise StoreError(f"{self.folder} was opened for reading only: open it with write=True")
        return self._database.write(job, alone=alone)

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

    def media_file(self, sha256: str) -> tuple[Path, str] | None:
        """Where the medium of that hash lies, and its type; None for anything the database does not list."""
        with self._database.read() as connection:
            found = medium.find(connection, sha256)
        return None if found is None else (self.folder / found[0], found[1])

    def may_see(self, rater: str, sha256: str) -> bool:
        """Whether a medium is part of a comparison that the rater was given."""
        query = (
            sa.select(1)
            .select_from(schema.samples)
            .join(schema.shown, schema.shown.c.sample == schema.samples.c.id)
            .join(schema.leases, schema.leases.c.comparison == schema.shown.c.comparison)
            .where(schema.samples.c.medium == sha256, schema.leases.c.rater == rater)
        )
        with self._database.read() as connection:
            return connection.scalar(query.limit(1)) is not None

    # --- adding facts -------------------------------------------------------------------------------------------------

    def add_samples(self, samples: Iterable[Sample], batch: str = "") -> int:
        """Adds samples with their media, as bytes or as `add_media` returned them; how many were new.

        Each of the `add_` methods knows a fact again by its id, adds it once, raises StoreError for another content
        under a known id, and has all of it on disk when it returns. batch: what they were made for, such as a round.
        """
        new = 0
        for part in facts.chunks(samples, 100):
            kept = [self._kept(sample) for sample in part]
            rows = [
                facts.SAMPLES.row(sample) | {"medium": sha256, "batch": batch}
                for sample, (sha256, _, _) in zip(part, kept, strict=True)
            ]
            new += len(self._write(lambda connection, rows=rows, kept=kept: _insert_samples(connection, rows, kept)))
        return new

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
        return self._add(facts.SCORES, scores, lambda s: [s.sample], "a score")

    def add_votes(self, votes: Iterable[Vote]) -> int:
        return self._add(facts.VOTES, votes, lambda v: [v.a, v.b], "a vote")

    def add_rankings(self, rankings: Iterable[Ranking]) -> int:
        return self._add(facts.RANKINGS, rankings, lambda r: [s for group in r.groups for s in group], "a ranking")

    def _add(self, kind: Kind, records: Iterable[Any], about: Callable[[Any], list[str]], who: str) -> int:
        def job(connection: sa.Connection, part: list[Any]) -> int:
            facts.require(connection, schema.samples.c.id, [name for record in part for name in about(record)], who)
            return len(facts.insert(connection, kind, [kind.row(record) for record in part]))

        return sum(self._write(lambda c, part=part: job(c, part)) for part in facts.chunks(records))

    def add_comparisons(self, comparisons: Iterable[Comparison]) -> int:
        """What raters are to be shown; their samples must be of the comparison's prompt."""
        return sum(self._write(lambda c, part=part: _insert_comparisons(c, part)) for part in facts.chunks(comparisons))

    def add_retractions(self, retractions: Iterable[Retraction]) -> int:
        """Takes votes or rankings back that were not given in the studio; those are taken back by `undo`."""

        def job(connection: sa.Connection, part: list[Retraction]) -> int:
            known: set[str] = set()
            for table in (schema.votes, schema.rankings):
                known |= set(connection.scalars(sa.select(table.c.id).where(table.c.id.in_([r.of for r in part]))))
            missing = [r.of for r in part if r.of not in known]
            if missing:
                raise StoreError(f"a retraction of {missing[0]!r}, which is no vote or ranking of the project")
            return len(facts.insert(connection, facts.RETRACTIONS, [facts.RETRACTIONS.row(r) for r in part]))

        return sum(self._write(lambda c, part=part: job(c, part)) for part in facts.chunks(retractions))

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
        query = query if retracted else query.where(_not_retracted(schema.votes, snapshot))
        return self._facts(facts.VOTES, query, {"dimension": dimension}, snapshot)

    def rankings(
        self, dimension: str | None = None, retracted: bool = False, snapshot: Snapshot | None = None
    ) -> Iterator[Ranking]:
        query = sa.select(schema.rankings)
        query = query if retracted else query.where(_not_retracted(schema.rankings, snapshot))
        return self._facts(facts.RANKINGS, query, {"dimension": dimension}, snapshot)

    def comparisons(self, batch: str | None = None, snapshot: Snapshot | None = None) -> Iterator[Comparison]:
        return self._facts(facts.COMPARISONS, sa.select(schema.comparisons), {"batch": batch}, snapshot)

    def retractions(self, snapshot: Snapshot | None = None) -> Iterator[Retraction]:
        return self._facts(facts.RETRACTIONS, sa.select(schema.retractions), {}, snapshot)

    def _facts(
        self, kind: Kind, query: sa.Select[Any], wanted: Mapping[str, str | None], snapshot: Snapshot | None
    ) -> Iterator[Any]:
        for name, value in wanted.items():
            if value is not None:
                query = query.where(kind.table.c[name] == value)
        mark = snapshot.marks[kind.table.name] if snapshot else None
        return (kind.record(row) for row in facts.pages(self._database, query, kind.table.c.seq, mark))

    # --- raters -------------------------------------------------------------------------------------------------------

    def add_rater(self, name: str, role: raters.Role = "rater", expires: str | None = None) -> tuple[str, str]:
        """A new rater's id and token. The token is told this once: only its hash is kept. expires: ISO 8601."""
        made: tuple[str, str] = self._write(lambda connection: raters.add(connection, name, role, expires))
        return made

    def rater_of(self, token: str) -> Rater | None:
        """Whose token it is; None if it is nobody's, revoked or expired."""
        with self._database.read() as connection:
            return raters.of_token(connection, token)

    def raters(self) -> list[Rater]:
        """All but the erased, in order of arrival."""
        table = schema.raters
        query = sa.select(table).where(table.c.token.is_not(None)).order_by(table.c.time, table.c.id)
        with self._database.read() as connection:
            return [raters.record(row) for row in connection.execute(query)]

    def revoke(self, rater: str) -> None:
        """Their token lets nobody in any more; what they said stays."""
        self._write(lambda connection: raters.change(connection, rater, {"revoked": True}))

    def set_preference(self, rater: str, *, blur: bool | None = None, opted_out: bool | None = None) -> None:
        """blur: sensitive media until looked at. opted_out: spared sensitive comparisons altogether."""
        values = {name: value for name, value in (("blur", blur), ("opted_out", opted_out)) if value is not None}
        if values:
            self._write(lambda connection: raters.change(connection, rater, values))

    def erase(self, rater: str, votes: bool = False) -> int:
        """Forgets who a rater was and, with `votes`, deletes all they said; how many facts went. Itself recorded.

        Their places are free again. Snapshots that held their votes can no longer be given.
        """
        removed: int = self._write(lambda connection: raters.erase(connection, rater, votes), alone=True)
        return removed

    # --- judging ------------------------------------------------------------------------------------------------------

    def lease(self, rater: str, n: int = 2, now: float | None = None) -> list[Lease]:
        """Up to n comparisons for this rater: those they hold, then new ones; empty if there is nothing left for them.

        now: seconds since 1970, the clock's by default.
        """
        at = time.time() if now is None else now
        with self._database.read() as connection:
            late = leases.any_expired(connection, at)
            mine = leases.held(connection, rater, at)
        if late:
            self._write(lambda connection: leases.expire(connection, at))
        if len(mine) < n:
            self._write(lambda connection: leases.take(connection, rater, n, at, self.settings))
        with self._database.read() as connection:
            return leases.filled(connection, leases.held(connection, rater, at)[:n])

    def answer(
        self,
        rater: str,
        lease: str,
        key: str,
        answers_of: Mapping[str, Answer],
        seconds: float | None = None,
        reason: str = "",
        now: float | None = None,
    ) -> Receipt:
        """Stores a rater's answers to the questions of one lease, all or none; on disk when this returns.

        key: the rater's own for this answer; sent again it counts once. answers_of: by dimension, what was chosen as it
        was shown: left, right, tie, both_bad or skip; or a ranking, groups of places from 0, the best group first:
        [[2], [0, 1]]. seconds: it took. reason: of a skip.
        """
        given = answers.Given(rater, lease, key, answers_of, seconds, reason)
        given.check(self.settings)
        at = time.time() if now is None else now
        receipt: Receipt = self._write(lambda connection: answers.answer(connection, given, at))
        return receipt

    def undo(self, rater: str, key: str, now: float | None = None) -> Receipt:
        """Takes the rater's latest answer back, which stays as a fact, retracted; its lease is open again.

        key: the rater's own for this undo; sent again it counts once.
        """
        answers.check_key(key)
        expires = (time.time() if now is None else now) + 60 * self.settings.lease_minutes
        receipt: Receipt = self._write(lambda connection: answers.undo(connection, rater, key, expires))
        return receipt

    def held(self, rater: str, now: float | None = None) -> list[Lease]:
        """The comparisons that wait for this rater; none is given anew."""
        at = time.time() if now is None else now
        with self._database.read() as connection:
            return leases.filled(connection, leases.held(connection, rater, at))

    def answered(self, rater: str) -> int:
        """How many answers of the rater stand, skips, known pairs and repeats included."""
        table = schema.answers
        query = sa.select(sa.func.count()).where(table.c.rater == rater, table.c.kind == "answer", ~table.c.undone)
        with self._database.read() as connection:
            return connection.scalar(query) or 0

    def progress(self) -> Progress:
        """How far the raters have come, from counts alone."""
        leases_of, places, comparisons = schema.leases, schema.places, schema.comparisons
        ordinary = sa.and_(places.c.comparison == leases_of.c.comparison, sa.not_(places.c.known))
        judged = sa.select(leases_of.c.rater, leases_of.c.comparison).join(places, ordinary)
        judged = judged.where(leases_of.c.state == "answered", sa.not_(leases_of.c.repeat))
        with self._database.read() as connection:
            each = judged.with_only_columns(leases_of.c.rater, sa.func.count()).group_by(leases_of.c.rater)
            counts = {row[0]: row[1] for row in connection.execute(each.order_by(leases_of.c.rater))}
            all_of = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(comparisons.c.wanted), 0)).where(
                comparisons.c.expected == ""
            )
            number, wanted = connection.execute(all_of).one()
            full = judged.with_only_columns(leases_of.c.comparison, sa.func.count().label("n"))
            full_of = full.group_by(leases_of.c.comparison).subquery()
            done = connection.scalar(
                sa.select(sa.func.count())
                .select_from(full_of.join(comparisons, comparisons.c.id == full_of.c.comparison))
                .where(full_of.c.n >= comparisons.c.wanted)
            )
            waiting = connection.scalar(sa.select(sa.func.count()).where(leases_of.c.state == "open"))
        return Progress(number, done or 0, wanted, sum(counts.values()), counts, waiting or 0)

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def snapshot(self, name: str | None = None) -> Snapshot:
        """The facts as they are now, by which they can be read again whatever comes in.

        A store that only reads gives one, too, but cannot note its name and time. Raises StoreError for a name that is
        another snapshot's.
        """
        if self._writable:
            taken: Snapshot = self._write(
                lambda connection: snapshots.take(connection, self.settings.id, name, True), alone=True
            )
            return taken
        if name is not None:
            raise StoreError(f"{self.folder} was opened for reading only: a snapshot's name cannot be noted")
        with self._database.read() as connection:
            return snapshots.take(connection, self.settings.id, None, False)

    def find_snapshot(self, wanted: str) -> Snapshot:
        """By id or name. Raises StoreError if there is none, or votes in it were erased since."""
        with self._database.read() as connection:
            return snapshots.find(connection, self.settings.id, wanted)


def _insert_samples(
    connection: sa.Connection, rows: list[facts.Row], kept: list[tuple[str, str, int]]
) -> list[facts.Row]:
    for sha256, kind, size in kept:
        medium.note(connection, sha256, kind, size)
    known = {row["id"] for row in rows}
    batches = dict(
        connection.execute(
            sa.select(schema.samples.c.id, schema.samples.c.batch).where(schema.samples.c.id.in_(known))
        ).all()
    )
    # A sample that is known stays in the batch it came in.
    return facts.insert(
        connection, facts.SAMPLES, [row | {"batch": batches.get(row["id"], row["batch"])} for row in rows]
    )


def _insert_comparisons(connection: sa.Connection, part: list[Comparison]) -> int:
    ids = list(dict.fromkeys(sample for made in part for sample in made.samples))
    query = sa.select(schema.samples.c.id, schema.samples.c.prompt).where(schema.samples.c.id.in_(ids))
    prompts = {row.id: row.prompt for row in connection.execute(query)}
    for made in part:
        for sample in made.samples:
            if prompts.get(sample) != made.prompt:
                what = "of another prompt" if sample in prompts else "not in the project; add it first"
                raise StoreError(f"comparison {made.id!r}: sample {sample!r} is {what}")
    new = {row["id"] for row in facts.insert(connection, facts.COMPARISONS, [facts.COMPARISONS.row(c) for c in part])}
    fresh = list({made.id: made for made in part if made.id in new}.values())
    if fresh:
        table = schema.comparisons
        seqs = {
            row.id: row.seq
            for row in connection.execute(sa.select(table.c.id, table.c.seq).where(table.c.id.in_(list(new))))
        }
        connection.execute(
            sa.insert(schema.places),
            [
                {
                    "comparison": made.id,
                    "seq": seqs[made.id],
                    "free": made.wanted,
                    "known": bool(made.expected),
                    "sensitive": made.sensitive,
                }
                for made in fresh
            ],
        )
        connection.execute(
            sa.insert(schema.shown),
            [{"comparison": made.id, "sample": sample} for made in fresh for sample in made.samples],
        )
    return len(fresh)


def _not_retracted(table: sa.Table, snapshot: Snapshot | None) -> sa.ColumnElement[bool]:
    taken_back = sa.select(1).where(schema.retractions.c.of == table.c.id)
    if snapshot is not None:
        taken_back = taken_back.where(schema.retractions.c.seq <= snapshot.marks["retractions"])
    return ~taken_back.exists()
