"""How far raters agree, with themselves, with each other and with what is known: whom and what to trust.

    alpha(votes)                  # Krippendorff's alpha with its interval: 1 they all agree, 0 as chance would
    raters(votes, comparisons)    # one line each: known pairs, repeats, sides, seconds, and flags with their reasons

A rating is what one rater said of one pair, whichever way round the pair was stored; a skip is none. Sides have no
meaning, so that each pair counts both ways round: neither the order of ids nor which model stands first matters.
Raters are flagged, never removed: whoever reads the flags decides.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

from palate import jackknife
from palate.records import OVERALL, Comparison, Ranking, Vote

Interval = tuple[float, float]
Pair = tuple[str, str]  # ids of two samples, sorted
RATINGS = ("first", "second", "tie", "both_bad")  # of a sorted pair
_TURNED = (1, 0, 2, 3)  # the same ratings of the pair turned round
_LEVEL = 0.01  # chance at which a rater who just passes would be flagged, over all raters and checks of a kind
KNOWN_AT_LEAST = 0.75  # of the known pairs are right, with anyone who looks
SAME_AT_LEAST = 0.5  # of the repeated pairs are answered as before
SECONDS_AT_LEAST = 0.8  # a median below it is faster than one can look at two pictures


@dataclass(frozen=True)
class Alpha:
    """alpha: 1 full agreement, 0 chance, below 0 against each other. ci95: over pairs (or prompts).

    Of `pairs` pairs that two or more of `raters` raters judged, with `ratings` judgements.
    """

    alpha: float
    ci95: Interval
    pairs: int
    raters: int
    ratings: int


@dataclass(frozen=True)
class Share:
    """k of n, its share (NaN of none) and Wilson's 95% interval."""

    k: int
    n: int
    share: float
    ci95: Interval


@dataclass(frozen=True)
class Rater:
    """What is known of one rater's work.

    votes: judgements, rankings among them. known: known pairs answered rightly, each in the question whose answer is
    known. repeats: repeated pairs answered as before. left: the left side among those preferred, and left_p, the chance
    of so uneven a share from someone who does not look at sides (exact, two-sided).
    others: share of the other raters' judgements of the same pairs that say the same. seconds: median, None unknown.
    flags: what speaks against relying on them, with the numbers.
    """

    id: str
    votes: int
    skips: int
    known: Share
    repeats: Share
    left: Share
    left_p: float
    others: Share
    seconds: float | None
    flags: tuple[str, ...] = ()


def alpha(
    votes: Iterable[Vote],
    dimension: str = OVERALL,
    *,
    comparisons: Iterable[Comparison] = (),
    prompt_of: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Alpha | None:
    """Krippendorff's alpha (nominal) of the raters, None where no pair has two judgements.

    comparisons: known pairs among them are left out: they are easy, and would flatter. prompt_of: the prompt of each
    sample; the interval is then over prompts instead of pairs, since pairs of one prompt are easy or hard together.
    The estimate is that of Krippendorff, Content Analysis (2018), chapter 12, on the pairs counted both ways round.
    Where too few pairs bound it, the interval's ends are NaN.
    """
    known = {c.id for c in comparisons if c.expected}
    units, people = _units((vote for vote in votes if vote.comparison not in known), dimension)
    judged = {pair: given for pair, given in units.items() if given.sum() >= 2}
    if not judged:
        return None
    tables = np.stack([_coincidences(given) for given in judged.values()]).reshape(len(judged), -1)
    names = [prompt_of.get(pair[0], pair[0]) if prompt_of else pair for pair in judged]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    groups = np.zeros((len(number), tables.shape[1]))
    np.add.at(groups, [number[name] for name in names], tables)
    found, low, high = jackknife.interval(lambda table: _alphas(table[None]), groups, seed)
    ratings = int(sum(given.sum() for given in judged.values()))
    return Alpha(float(found[0]), (float(low[0]), min(float(high[0]), 1.0)), len(judged), people, ratings)


def raters(
    votes: Iterable[Vote],
    comparisons: Iterable[Comparison] = (),
    dimension: str = OVERALL,
    *,
    rankings: Iterable[Ranking] = (),
) -> list[Rater]:
    """A line for every rater, in the order of their ids: their judgements of one dimension, and all known pairs.

    comparisons: those with an `expected` sample are known pairs, each tests in a dimension of its own; what others said
    of one counts nowhere. rankings: are right where the expected sample alone is first; of their repeats, order and
    likeness nothing is told.
    Votes marked as repeats are compared with the rater's first answer to the same pair and counted nowhere else.
    A rater is flagged where the exact binomial chance of doing so badly, of someone who just passes, is below 1%
    shared among all raters (Bonferroni), so that a hundred honest raters give about one false flag.
    """
    judged: list[Vote | Ranking] = [made for part in (votes, rankings) for made in part]
    known = {c.id: c for c in comparisons if c.expected}
    own = [made for made in judged if made.dimension == dimension]
    units, _ = _units((v for v in own if isinstance(v, Vote) and v.comparison not in known), dimension)
    by_rater: dict[str, _Work] = defaultdict(_Work)
    for made in own:
        work = by_rater[made.source]
        work.votes.append(made) if isinstance(made, Vote) else work.rankings.append(made)
    for made in judged:
        test = known.get(made.comparison)
        if test is None or made.dimension != test.dimension or made.repeat:
            continue
        if (right := _right(made, test.expected)) is not None:
            by_rater[made.source].right[made.comparison] = right
    return [_rater(name, by_rater[name], units, _LEVEL / len(by_rater)) for name in sorted(by_rater)]


def rating(vote: Vote) -> str | None:
    """What a vote says of its pair, sorted: one of RATINGS; None for a skip."""
    first = min(vote.a, vote.b)
    if vote.choice in ("a", "b"):
        return "first" if (vote.a if vote.choice == "a" else vote.b) == first else "second"
    return None if vote.choice == "skip" else vote.choice


def share(k: int, n: int) -> Share:
    from scipy.stats import binomtest

    if n == 0:
        return Share(0, 0, math.nan, (0.0, 1.0))
    ends = binomtest(k, n).proportion_ci(method="wilson")
    return Share(k, n, k / n, (float(ends.low), float(ends.high)))


# --- alpha ------------------------------------------------------------------------------------------------------------


def _units(votes: Iterable[Vote], dimension: str) -> tuple[dict[Pair, NDArray[np.float64]], int]:
    """How often each rating was given to each pair, one a rater: the first; and how many raters there are."""
    given: dict[tuple[Pair, str], int] = {}
    for vote in votes:
        said = rating(vote)
        if vote.dimension == dimension and said is not None and not vote.repeat:
            given.setdefault((_pair(vote), vote.source), RATINGS.index(said))
    units: dict[Pair, NDArray[np.float64]] = {}
    for (pair, _), which in given.items():
        units.setdefault(pair, np.zeros(len(RATINGS)))[which] += 1
    return units, len({source for _, source in given})


def _pair(vote: Vote) -> Pair:
    return (vote.a, vote.b) if vote.a < vote.b else (vote.b, vote.a)


def _coincidences(given: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R, R]: how often two raters of one pair gave these two ratings, both ways round; sums to twice its ratings."""
    table = (np.outer(given, given) - np.diag(given)) / (given.sum() - 1)
    turned = np.asarray(_TURNED)
    return np.asarray(table + table[np.ix_(turned, turned)])


def _alphas(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Alpha of each coincidence table [n, R * R]; NaN where nothing varies."""
    r = len(RATINGS)
    square = tables.reshape(-1, r, r)
    margin, n = square.sum(-1), square.sum((-1, -2))
    observed = n - np.trace(square, axis1=-2, axis2=-1)
    expected = (n**2 - (margin**2).sum(-1)) / (n - 1)
    return 1 - np.divide(observed, expected, out=np.full_like(n, np.nan), where=expected > 0)


# --- raters -----------------------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """What one rater did: judgements of one dimension, and whether known pairs were answered rightly."""

    votes: list[Vote] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    right: dict[str, bool] = field(default_factory=dict)  # by comparison


def _right(made: Vote | Ranking, expected: str) -> bool | None:
    """Whether a known pair was answered rightly; None for a skip."""
    if isinstance(made, Ranking):
        return made.groups[0] == (expected,)
    return None if made.choice == "skip" else _picked(made) == expected


def _rater(name: str, work: _Work, units: Mapping[Pair, NDArray[np.float64]], level: float) -> Rater:
    votes = work.votes
    everything: list[Vote | Ranking] = [*votes, *work.rankings]
    first = [vote for vote in votes if not vote.repeat]
    given = {_pair(vote): said for vote in reversed(first) if (said := rating(vote)) is not None}
    again = [(rating(vote), given.get(_pair(vote))) for vote in votes if vote.repeat]
    again = [(now, before) for now, before in again if now is not None and before is not None]
    sides = [_picked(vote) == vote.left for vote in votes if vote.left and vote.choice in ("a", "b")]
    same, others = _alike({pair: said for pair, said in given.items() if pair in units}, units)
    seconds = [made.seconds for made in everything if made.seconds is not None]
    counts = Counter(vote.choice for vote in first)
    left = share(sum(sides), len(sides))
    found = Rater(
        name,
        # Of several, that all are bad is one judgement, and a vote on each pair.
        len({made.comparison or made.id for made in everything if not made.repeat}),
        counts["skip"],
        share(sum(work.right.values()), len(work.right)),
        share(sum(now == before for now, before in again), len(again)),
        left,
        _chance(left, 0.5, "two-sided"),
        share(same, others),
        median(seconds) if seconds else None,
    )
    return Rater(**{**vars(found), "flags": tuple(_flags(found, level))})


def _picked(vote: Vote) -> str | None:
    """The sample preferred; None for a tie or none."""
    return {"a": vote.a, "b": vote.b}.get(vote.choice)


def _alike(given: Mapping[Pair, str], units: Mapping[Pair, NDArray[np.float64]]) -> tuple[int, int]:
    """How many judgements of others say the same of this rater's pairs, and how many there are."""
    same = others = 0
    for pair, said in given.items():
        counts = units[pair]
        same += int(counts[RATINGS.index(said)]) - 1
        others += int(counts.sum()) - 1
    return same, others


def _chance(of: Share, p: float, alternative: str) -> float:
    """The exact chance of k of n or what is more extreme, if each had chance p; 1 of none."""
    from scipy.stats import binomtest

    return float(binomtest(of.k, of.n, p, alternative).pvalue) if of.n else 1.0


def _flags(rater: Rater, level: float) -> Iterable[str]:
    if _chance(rater.known, KNOWN_AT_LEAST, "less") < level:
        yield f"{rater.known.k} of {rater.known.n} known pairs right, and {KNOWN_AT_LEAST:.0%} is the least to expect"
    if _chance(rater.repeats, SAME_AT_LEAST, "less") < level:
        yield f"{rater.repeats.k} of {rater.repeats.n} repeated pairs answered as before, which chance would do better"
    if rater.left_p < level:
        yield f"{rater.left.share:.0%} of {rater.left.n} preferences are for the left side, and sides are random"
    if rater.seconds is not None and rater.votes >= 10 and rater.seconds < SECONDS_AT_LEAST:
        yield f"{rater.seconds:.1f} s a judgement (median): too fast to look at both"
    if rater.votes >= 10 and rater.skips > rater.votes / 2:
        yield f"{rater.skips} of {rater.votes} pairs skipped"
