"""Facts and preference rows as frozen records: no torch, no models, no files.

A fact says what happened, with an id, a source and a time, and is never changed: `Sample` (something was made), `Score`
(a scorer's number), `Vote` and `Ranking` (judgements), `Retraction` (a judgement taken back), `Comparison` (something
raters are to be shown). A `Preference` is derived from facts by `palate.views`: the K candidates of
one prompt and what is known about which is better. Times are ISO 8601 with an offset, `2026-01-31T12:00:00+00:00`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

Matrix = tuple[tuple[float, ...], ...]
Choice = Literal["a", "b", "tie", "both_bad", "skip"]
OVERALL = "overall"  # the dimension of what was asked if nothing in particular was


class RecordError(ValueError):
    """A record that cannot be: says which field, and of which row where that is known."""

    def __init__(self, field_name: str, reason: str, where: str = "") -> None:
        super().__init__(f"{where + ': ' if where else ''}field `{field_name}` {reason}")
        self.field, self.reason, self.where = field_name, reason, where


def now() -> str:
    """The time as facts hold it, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _check_time(time: str) -> None:
    try:
        aware = datetime.fromisoformat(time).tzinfo is not None
    except (TypeError, ValueError):
        aware = False
    if not aware:
        raise RecordError("time", f"must be ISO 8601 with an offset, such as {now()}; got {time!r}")


def _check_names(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if not isinstance(value, str) or not value:
            raise RecordError(name, f"must be a non-empty text, got {value!r}")


@dataclass(frozen=True)
class Medium:
    """A picture or other medium: its bytes, or the path of its file relative to the data it belongs to.

    type: its media type, such as image/png.
    """

    type: str
    bytes: bytes | None = field(default=None, repr=False)
    path: str | None = None

    def __post_init__(self) -> None:
        if (self.bytes is None) == (self.path is None):
            raise RecordError("media", "must hold either bytes or a path for each medium, not both and not neither")
        if not isinstance(self.type, str) or "/" not in self.type:
            raise RecordError("media", f"must name each medium's type, such as image/png; got {self.type!r}")


@dataclass(frozen=True)
class Sample:
    """Something made for a prompt. source: the model (and adapter) that made it. seed: None where it is not known."""

    id: str
    prompt: str
    medium: Medium
    source: str
    time: str
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_names(self, "id", "source")
        _check_time(self.time)


@dataclass(frozen=True)
class Score:
    """One scorer's number for one sample, raw; NaN where it could not judge. source: the scorer and its version."""

    sample: str
    dimension: str
    value: float
    source: str
    time: str

    def __post_init__(self) -> None:
        _check_names(self, "sample", "dimension", "source")
        _check_time(self.time)


@dataclass(frozen=True)
class Vote:
    """One judgement of two samples of a prompt.

    id: made by whoever votes, once per judgement, so that one sent twice counts once.
    choice: which is better, or `tie` (equally good), `both_bad` (an absolute label, not a tie), `skip` (no judgement).
    source: the annotator or judge. dimension: what was asked, `overall` if nothing in particular.
    comparison: the id of what was shown. left: the sample that stood on the left. seconds: from sight to answer.
    reason: of a skip. repeat: asked again to see whether the annotator agrees with themselves; never counted.
    """

    id: str
    a: str
    b: str
    choice: Choice
    source: str
    time: str
    dimension: str = OVERALL
    comparison: str = ""
    left: str = ""
    seconds: float | None = None
    reason: str = ""
    repeat: bool = False

    def __post_init__(self) -> None:
        _check_names(self, "id", "a", "b", "source", "dimension")
        if self.a == self.b:
            raise RecordError("b", f"must be another sample than `a`, both are {self.a!r}")
        if self.choice not in get_args(Choice):
            raise RecordError("choice", f"must be one of {', '.join(get_args(Choice))}; got {self.choice!r}")
        if self.left not in ("", self.a, self.b):
            raise RecordError("left", f"must be `a` or `b` or empty where not known; got {self.left!r}")
        _check_seconds(self.seconds)
        _check_time(self.time)


@dataclass(frozen=True)
class Ranking:
    """One judgement that puts samples of a prompt in order.

    groups: ids of samples, the best group first; those of one group are equally good. shown: the ids in the order they
    stood in, empty where not known. The rest as of `Vote`.
    """

    id: str
    groups: tuple[tuple[str, ...], ...]
    source: str
    time: str
    dimension: str = OVERALL
    comparison: str = ""
    shown: tuple[str, ...] = ()
    seconds: float | None = None
    repeat: bool = False

    def __post_init__(self) -> None:
        _check_names(self, "id", "source", "dimension")
        object.__setattr__(self, "groups", tuple(tuple(group) for group in self.groups))
        object.__setattr__(self, "shown", tuple(self.shown))
        ranked = [sample for group in self.groups for sample in group]
        _check_ids("groups", ranked)
        if not all(self.groups):
            raise RecordError("groups", "must hold a sample in each group")
        if self.shown and sorted(self.shown) != sorted(ranked):
            raise RecordError("shown", f"must be the samples that were ranked; got {', '.join(map(str, self.shown))}")
        _check_seconds(self.seconds)
        _check_time(self.time)


@dataclass(frozen=True)
class Retraction:
    """A vote or ranking is taken back: the fact stays, and counts no more. of: its id. source: who took it back."""

    id: str
    of: str
    source: str
    time: str

    def __post_init__(self) -> None:
        _check_names(self, "id", "of", "source")
        _check_time(self.time)


@dataclass(frozen=True)
class Comparison:
    """What raters are to be shown: two samples of a prompt, or more to be ranked.

    wanted: how many distinct raters are to judge it. batch: what it was made for, such as a round.
    expected: the sample that a known pair must be won by, in `dimension`; it tests raters, is shown to each of them
    whatever `wanted` says, and its votes are never counted. sensitive: not shown to raters who asked to be spared.
    """

    id: str
    prompt: str
    samples: tuple[str, ...]
    wanted: int
    batch: str = ""
    expected: str = ""
    dimension: str = OVERALL
    time: str = field(default_factory=now)
    sensitive: bool = False

    def __post_init__(self) -> None:
        _check_names(self, "id", "dimension")
        object.__setattr__(self, "samples", tuple(self.samples))
        _check_ids("samples", self.samples)
        if isinstance(self.wanted, bool) or not isinstance(self.wanted, int) or not 1 <= self.wanted < 2**31:
            raise RecordError("wanted", f"must be a number of raters, at least 1; got {self.wanted!r}")
        if self.expected and self.expected not in self.samples:
            raise RecordError("expected", f"must be one of the samples shown; got {self.expected!r}")
        _check_time(self.time)


def _check_ids(name: str, ids: Sequence[str]) -> None:
    if any(not isinstance(sample, str) or not sample for sample in ids):
        raise RecordError(name, f"must hold ids of samples, got {list(ids)!r}")
    if len(ids) < 2 or len(set(ids)) != len(ids):
        raise RecordError(name, f"must hold two different samples or more, got {', '.join(ids) or 'none'}")


def _check_seconds(seconds: float | None) -> None:
    if seconds is not None and not 0 <= seconds < math.inf:
        raise RecordError("seconds", f"must be a time span, not negative; got {seconds!r}")


@dataclass(frozen=True)
class Aspect:
    """What is known about which candidate is better in one respect, such as motion quality.

    prefer, votes: [K, K] as those of the `Preference` it belongs to; votes 1 where known if left empty.
    """

    dimension: str
    prefer: Matrix
    votes: Matrix = ()


@dataclass(frozen=True)
class Preference:
    """One row of preference data: the K candidates of a prompt and what is known about which is better.

    media: K, None only where `mask` is false. mask: K, true where a candidate exists.
    prefer: [K, K] = P(i over j), and 1 less that at [j][i]; .5 a tie, NaN unknown or incomparable and on the diagonal.
    votes: [K, K], how many judgements stand behind it. scores: [K, D], raw, NaN unknown, by `dimensions`.
    weight: of the row. sources: K, what made each ("" unknown). seeds: K, None unknown.
    aspects: preferences in one respect each, beside the overall one in `prefer` (which may know nothing).
    id: keys the row's randomness; made from prompt and media if empty. where: for errors, such as a shard and row.

    What is left empty is filled: mask true, votes 1 where known, no scores. Lists become tuples, None in numbers NaN.
    Raises RecordError naming the field (and `where`).
    """

    prompt: str
    media: tuple[Medium | None, ...]
    prefer: Matrix
    mask: tuple[bool, ...] = ()
    votes: Matrix = ()
    scores: Matrix = ()
    dimensions: tuple[str, ...] = ()
    weight: float = 1.0
    sources: tuple[str, ...] = ()
    seeds: tuple[int | None, ...] = ()
    aspects: tuple[Aspect, ...] = ()
    id: str = ""
    where: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        try:
            for name, value in _checked(self).items():
                object.__setattr__(self, name, value)
        except RecordError as error:
            raise RecordError(error.field, error.reason, self.where) from None

    def __len__(self) -> int:
        return len(self.media)


def _checked(row: Preference) -> dict[str, Any]:
    """The fields of a row in their one form. Raises RecordError without `where`."""
    if not isinstance(row.prompt, str):
        raise RecordError("prompt", f"must be a text, got {row.prompt!r}")
    media = tuple(row.media)
    k = len(media)
    if k == 0:
        raise RecordError("media", "must hold at least one candidate")
    mask = _list(row.mask if len(row.mask) else [True] * k, k, bool, "mask")
    for i, medium in enumerate(media):
        if medium is None and mask[i]:
            raise RecordError("media", f"lacks candidate {i}, which `mask` says exists")
    prefer, votes = _judged(row.prefer, row.votes, mask)
    dimensions = tuple(row.dimensions)
    if len(set(dimensions)) != len(dimensions):
        raise RecordError("dimensions", f"must have different names, got {', '.join(dimensions)}")
    weight = _number(row.weight, "weight")
    if not 0 <= weight < math.inf:
        raise RecordError("weight", f"must be a finite number, not negative; got {weight}")
    seeds = _list(row.seeds if len(row.seeds) else [None] * k, k, (int, type(None)), "seeds")
    if any(seed is not None and not 0 <= seed < 2**63 for seed in seeds):
        raise RecordError("seeds", f"must lie from 0 to 2^63 - 1, got {list(seeds)}")
    scores = row.scores if len(row.scores) else [[math.nan] * len(dimensions)] * k
    return {
        "media": media,
        "prefer": prefer,
        "mask": mask,
        "votes": votes,
        "scores": _matrix(scores, k, len(dimensions), "scores"),
        "dimensions": dimensions,
        "weight": weight,
        "sources": _list(row.sources if len(row.sources) else [""] * k, k, str, "sources"),
        "seeds": seeds,
        "aspects": _checked_aspects(row.aspects, mask),
        "id": row.id or content_id(row.prompt, media),
    }


def _judged(prefer: Matrix, votes: Matrix, mask: Sequence[bool]) -> tuple[Matrix, Matrix]:
    """prefer and votes [K, K] in their one form."""
    k = len(mask)
    prefer = _matrix(prefer, k, k, "prefer")
    _check_prefer(prefer, mask)
    known = tuple(tuple(0.0 if i == j or math.isnan(p) else 1.0 for j, p in enumerate(r)) for i, r in enumerate(prefer))
    votes = _matrix(votes, k, k, "votes") if len(votes) else known
    for i in range(k):
        for j in range(k):
            if not 0 <= votes[i][j] < math.inf or votes[i][j] != votes[j][i]:
                raise RecordError("votes", f"must be symmetric counts; [{i}][{j}] is {votes[i][j]}")
    return prefer, votes


def _checked_aspects(aspects: Iterable[Aspect], mask: Sequence[bool]) -> tuple[Aspect, ...]:
    checked: dict[str, Aspect] = {}
    for aspect in aspects:
        name = aspect.dimension
        if not isinstance(name, str) or not name or name == OVERALL or name in checked:
            raise RecordError("aspects", f"must have names of their own, none of them {OVERALL!r}; got {name!r}")
        try:
            checked[name] = Aspect(name, *_judged(aspect.prefer, aspect.votes, mask))
        except RecordError as error:
            raise RecordError("aspects", f"of {name!r}: `{error.field}` {error.reason}") from None
    return tuple(checked.values())


def _check_prefer(prefer: Matrix, mask: Sequence[bool]) -> None:
    for i, row in enumerate(prefer):
        for j, p in enumerate(row):
            if math.isnan(p) and math.isnan(prefer[j][i]):
                continue
            if i == j and p == 0.5:
                continue
            here = f"[{i}][{j}] is {p}"
            if not 0 <= p <= 1:  # NaN included: the other triangle knows what this one does not
                raise RecordError("prefer", f"must hold probabilities in both triangles or NaN in both; {here}")
            if i == j or abs(p + prefer[j][i] - 1) > 1e-6:
                raise RecordError(
                    "prefer", f"must add up to 1 with its mirror image; {here}, its mirror {prefer[j][i]}"
                )
            if not (mask[i] and mask[j]):
                raise RecordError("prefer", f"must be NaN where `mask` says there is no candidate; {here}")


def _number(value: Any, name: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool | str | bytes):
        raise RecordError(name, f"must hold numbers, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RecordError(name, f"must hold numbers, got {value!r}") from None


def _list(values: Iterable[Any], length: int, kind: type | tuple[type, ...], name: str) -> tuple[Any, ...]:
    values = tuple(values)
    if len(values) != length:
        raise RecordError(name, f"must have one entry per candidate, {length}; it has {len(values)}")
    for value in values:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise RecordError(name, f"holds {value!r}, which is of the wrong type")
    return values


def _matrix(rows: Iterable[Iterable[Any]], height: int, width: int, name: str) -> Matrix:
    try:
        matrix = tuple(tuple(_number(value, name) for value in row) for row in rows)
    except TypeError:
        raise RecordError(name, f"must be a [{height}, {width}] table of numbers") from None
    if len(matrix) != height or any(len(row) != width for row in matrix):
        shape = f"{len(matrix)} rows of {sorted({len(row) for row in matrix})}"
        raise RecordError(name, f"must be a [{height}, {width}] table of numbers; it has {shape}")
    return matrix


def content_id(prompt: str, media: Iterable[Medium | None]) -> str:
    """A row's id made of what it shows, so that it does not depend on where the row stands."""
    digest = hashlib.sha256(prompt.encode())
    for medium in media:
        content = b"" if medium is None else (medium.bytes or (medium.path or "").encode())
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:24]
