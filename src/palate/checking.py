"""Is preference data good enough to learn from? One pass over any readable format, every medium decoded.

    found = check(datasets.open("hpdv3/train.json"), against=datasets.open("hpdv3/test.json"))
    print(found)               # counts, label balance, what is bad and where, what is repeated, what leaks
    assert found.good

Memory holds some 50 bytes a medium, 10 a row and 100 a prompt, never the media: hashes tell repeated pictures, near
duplicates and prompts that two splits share.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palate import duplicates, media, views
from palate.datasets import Flaws, Reader
from palate.evaluation.win_rate import wilson
from palate.media import DatasetError, MediaError
from palate.reading import known_pairs
from palate.records import Preference
from palate.tables import Flaw

MAX_BAD = 0.01
SHOWN = 5
MAX_NAMES = 10_000  # sources and picture sizes that are told apart


@dataclass(frozen=True)
class Share:
    """A share of n judgements, ties half, with Wilson's 95% interval, which takes them for independent."""

    share: float
    ci95: tuple[float, float]
    n: int

    def __str__(self) -> str:
        return f"{self.share:.1%} of {self.n:,} (95% interval {self.ci95[0]:.1%} to {self.ci95[1]:.1%})"


@dataclass
class Findings:
    """What `check` found. Counts are of what could be read; `reasons` say why the data are not good.

    soft: pairs with a preference other than 0, .5 and 1. silent: rows that compare nothing. balance: how often the
    first of two candidates wins, ties half. by_source: how often each model's candidates win against other models'.
    copies: media that are byte for byte another one; elsewhere: such under another prompt. alike: pictures that only
    look like another one. same_in_row: rows with two candidates that are copies or look alike.
    shared_prompts, shared_media: of this split that are also in the other one.
    """

    source: str
    format: str
    max_bad: float
    rows: int = 0
    prompts: int = 0
    media: int = 0
    pairs: int = 0
    ties: int = 0
    soft: int = 0
    silent: int = 0
    duplicate_ids: int = 0
    candidates: Counter[int] = field(default_factory=Counter)
    aspects: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)
    balance: Share | None = None
    by_source: dict[str, Share] = field(default_factory=dict)
    bad_rows: Flaws = field(default_factory=Flaws)
    bad_media: Flaws = field(default_factory=Flaws)
    copies: int = 0
    elsewhere: int = 0
    alike: int = 0
    same_in_row: Flaws = field(default_factory=Flaws)
    against: str = ""
    shared_prompts: int = 0
    shared_media: int = 0
    first_shared: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """Why the data are not good; empty if they are."""
        found = list(self.problems)
        for bad, whole, what in ((self.bad_media, self.media, "media"), (self.bad_rows, self.rows, "rows")):
            of = whole + (bad.total if what == "rows" else 0)
            if bad.total > self.max_bad * of:
                found.append(f"{bad.total:,} of {of:,} {what} are bad, more than {self.max_bad:.2%}")
        if not self.rows:
            found.append("there are no rows")
        if self.shared_prompts:
            found.append(f"{self.shared_prompts:,} prompts are also in {self.against}")
        if self.shared_media:
            found.append(f"{self.shared_media:,} media are also in {self.against}, or look like some there")
        return found

    @property
    def good(self) -> bool:
        return not self.reasons

    def json(self) -> dict[str, Any]:
        """Everything as plain values."""
        plain = {name: _plain(value) for name, value in vars(self).items()}
        return {**plain, "good": self.good, "reasons": self.reasons}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def check(
    reader: Reader,
    *,
    max_bad: float = MAX_BAD,
    against: Reader | None = None,
    progress: Callable[[int], None] | None = None,
) -> Findings:
    """One pass over all rows, and one over those of another split. progress: called with 1 after each row.

    max_bad: the share of media, and of rows, that may be bad. Nothing that is wrong with the data raises.
    """
    found = Findings(reader.source.name, reader.format, max_bad)
    seen = _Seen()
    _read(reader, found, seen, progress)
    seen.repeated(found)
    if against is not None:
        found.against = against.source.name + (f" ({against.source.split})" if against.source.split else "")
        other, others = Findings(found.against, against.format, max_bad), _Seen(known=seen)
        _read(against, other, others, progress)
        found.problems += [f"{found.against}: {problem}" for problem in other.problems]
        seen.shared(others, found)
    return found


def _read(reader: Reader, found: Findings, seen: _Seen, progress: Callable[[int], None] | None) -> None:
    balance, sources = _Wins(), dict[str, _Wins]()
    try:
        if hasattr(reader.module, "problems"):
            found.problems += reader.module.problems(reader.source)
        for row in reader:
            found.rows += 1
            found.candidates[sum(row.mask)] += 1
            seen.row(row)
            _judge(row, found, balance, sources)
            _look(row, reader, found, seen)
            if progress is not None:
                progress(1)
    except DatasetError as error:
        found.problems.append(str(error))
    found.bad_rows = reader.flaws
    found.prompts = len(seen.prompts)
    found.balance = balance.share()
    shares = {name: wins.share() for name, wins in sources.items()}
    found.by_source = {name: share for name, share in sorted(shares.items()) if share is not None}


def _judge(row: Preference, found: Findings, balance: _Wins, sources: dict[str, _Wins]) -> None:
    """Counts what the row says."""
    pairs = list(known_pairs(row))
    found.silent += not pairs and not row.aspects
    for i, j, p, _ in pairs:
        found.pairs += 1
        found.ties += p == 0.5
        found.soft += p not in (0, 0.5, 1)
        balance.add(p)
        ours, theirs = row.sources[i], row.sources[j]
        if ours and theirs and ours != theirs and (len(sources) < MAX_NAMES or {ours, theirs} <= sources.keys()):
            sources.setdefault(ours, _Wins()).add(p)
            sources.setdefault(theirs, _Wins()).add(1 - p)
    for aspect in row.aspects:
        known = [p for i, line in enumerate(aspect.prefer) for p in line[i + 1 :] if not math.isnan(p)]
        counts = found.aspects.setdefault(aspect.dimension, {"pairs": 0, "ties": 0})
        counts["pairs"] += len(known)
        counts["ties"] += known.count(0.5)


def _look(row: Preference, reader: Reader, found: Findings, seen: _Seen) -> None:
    """Decodes the row's media; remembers those that can be, counts those that cannot."""
    first = len(seen.digests)
    for k, (medium, exists) in enumerate(zip(row.media, row.mask, strict=True)):
        if medium is None or not exists:
            continue
        found.media += 1
        try:
            content = media.held(medium, reader.root)
            picture = media.check(content)
            seen.medium(content.bytes or b"", picture)
        except MediaError as error:
            named = f"{row.where or row.id}, candidate {k}" + (f" ({medium.path})" if medium.path else "")
            found.bad_media.add(Flaw(named, str(error), error.kind))
            continue
        if picture is not None and len(found.sizes) < MAX_NAMES:
            found.sizes[f"{picture.width}x{picture.height}"] += 1
    looks = seen.looks(slice(first, None))
    told = duplicates.telling(looks.hashes)
    if len(set(seen.digests[first:])) < len(told) or (duplicates.twins(looks[told]) >= 0).any():
        found.same_in_row.add(Flaw(row.where or row.id, "two candidates are the same or look alike", "alike"))


class _Wins:
    """A running share of wins, ties half."""

    def __init__(self) -> None:
        self.wins, self.n = 0.0, 0

    def add(self, p: float) -> None:
        self.wins, self.n = self.wins + p, self.n + 1

    def share(self) -> Share | None:
        if not self.n:
            return None
        low, high = wilson(min(self.wins, self.n), self.n)
        return Share(self.wins / self.n, (low, high), self.n)


class _Seen:
    """Of all rows and media so far: hashes, never the media."""

    def __init__(self, known: _Seen | None = None) -> None:
        """known: another split's, whose prompts are to be noticed when they come again."""
        self.prompts: dict[int, int] = {}  # hash of the folded prompt -> its number
        self.ids = array("Q")
        self.digests, self.hashes, self.prompt = array("Q"), array("Q"), array("L")  # of each medium
        self.colours = bytearray()
        self.known = known.prompts if known is not None else {}
        self.first_shared: dict[int, str] = {}

    def row(self, row: Preference) -> None:
        key = _hash(views.folded(row.prompt).encode())
        self.current = self.prompts.setdefault(key, len(self.prompts))
        self.ids.append(_hash(row.id.encode()))
        if key in self.known and len(self.first_shared) < SHOWN:
            self.first_shared[key] = row.prompt[:80]

    def medium(self, content: bytes, picture: Any) -> None:
        """picture: decoded; None for a medium that is none, whose hash then tells nothing."""
        self.digests.append(_hash(content))
        self.hashes.append(0 if picture is None else duplicates.dhash(picture))
        self.colours += bytes(duplicates.COLOURS) if picture is None else duplicates.colours(picture)
        self.prompt.append(self.current)

    def looks(self, at: slice) -> duplicates.Looks:
        every = np.array(self.hashes[at], np.uint64)
        start = (at.start or 0) * duplicates.COLOURS
        colours = np.frombuffer(bytes(self.colours[start:]), np.uint8).reshape(-1, duplicates.COLOURS)
        return duplicates.Looks(every, colours)

    def unique(self) -> tuple[NDArray[Any], duplicates.Looks]:
        """Digests of distinct pictures that a hash tells apart, and their looks."""
        digests, first = np.unique(np.array(self.digests, np.uint64), return_index=True)
        looks = self.looks(slice(None))[first]
        told = duplicates.telling(looks.hashes)
        return digests[told], looks[told]

    def repeated(self, found: Findings) -> None:
        digests, prompts = np.array(self.digests, np.uint64), np.array(self.prompt, np.int64)
        found.copies = len(digests) - len(np.unique(digests))
        both = np.unique(np.stack([digests, prompts.astype(np.uint64)]), axis=1)
        found.elsewhere = both.shape[1] - len(np.unique(digests))
        found.duplicate_ids = len(self.ids) - len(np.unique(np.array(self.ids, np.uint64)))
        found.alike = int((duplicates.twins(self.unique()[1]) >= 0).sum())

    def shared(self, others: _Seen, found: Findings) -> None:
        found.shared_prompts = len(self.prompts.keys() & others.prompts.keys())
        found.first_shared = list(others.first_shared.values())
        mine, theirs = np.unique(np.array(self.digests, np.uint64)), np.array(others.digests, np.uint64)
        same = set(mine[np.isin(mine, theirs)].tolist())
        digests, looks = self.unique()
        alike = digests[duplicates.twins(looks, others.unique()[1]) >= 0]
        found.shared_media = len(same | set(alike.tolist()))


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


# --- told -------------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, Share):
        return vars(value)
    if isinstance(value, Flaws):
        kinds = {kind: [vars(flaw) for flaw in flaws] for kind, flaws in value.first.items()}
        return {"total": value.total, "kinds": {k: {"count": value.counts[k], "first": kinds[k]} for k in kinds}}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _lines(found: Findings) -> list[str]:
    sizes = ", ".join(f"{n:,} x {size}" for size, n in found.sizes.most_common(3))
    per_row = ", ".join(f"{n:,} of {k}" for k, n in sorted(found.candidates.items()))
    ties = found.ties / found.pairs if found.pairs else 0.0
    lines = [
        f"{found.source} ({found.format})",
        f"{found.rows:,} rows of {found.prompts:,} prompts; candidates a row: {per_row or 'none'}",
        f"{found.media:,} media" + (f", pictures: {sizes}" if sizes else ""),
        f"{found.pairs:,} pairs, {ties:.1%} ties, {found.soft:,} soft; {found.silent:,} rows compare nothing",
    ]
    lines += [f"in {name}: {count['pairs']:,} pairs, {count['ties']:,} ties" for name, count in found.aspects.items()]
    if found.balance is not None:
        always = " (winners stand first)" if found.balance.share == 1 else ""
        lines.append(f"the first candidate wins {found.balance}{always}")
    lines += [f"{name} wins {share} against others" for name, share in list(found.by_source.items())[: 4 * SHOWN]]
    for flaws, what in ((found.bad_rows, "bad rows"), (found.bad_media, "bad media")):
        lines += [f"{flaws.total:,} {what}"] if flaws.total else []
        for kind, count in flaws.counts.most_common():
            lines.append(f"  {count:,} x {kind}")
            lines += [f"    {flaw.where}: {flaw.reason}" for flaw in flaws.first[kind]]
    lines.append(
        f"{found.copies:,} copies of media, {found.elsewhere:,} under another prompt; {found.alike:,} pictures look "
        f"like another; {found.same_in_row.total:,} rows with candidates alike; {found.duplicate_ids:,} ids used again"
    )
    if found.against:
        lines.append(f"shared with {found.against}: {found.shared_prompts:,} prompts, {found.shared_media:,} media")
        lines += [f"    {prompt}" for prompt in found.first_shared]
    return [*lines, "good" if found.good else f"not good: {'; '.join(found.reasons)}"]
