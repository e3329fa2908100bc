"""Simulated people with known tastes and known noise.

An annotator values a picture at the weighted sum of its scores, `u = sum_d weight_d * score_d`, and is shown two:
`a` on the left, `b` on the right. Without a lapse the answer is

    tie                  where |u_a - u_b| < tie_threshold
    a with probability   sigmoid((u_a - u_b + side_bias) / temperature)      (Bradley-Terry), else b

and with probability `lapse_rate` it is a, b or tie, each as likely. Whoever shows the pictures randomises the sides.
A vote is a function of (seed, pair id) and of nothing else random: order and batching do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit

ANSWERS = ("a", "b", "tie")

Scores = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Annotator:
    """One simulated person. `temperature`, `tie_threshold` and `side_bias` are in units of utility."""

    weights: Mapping[str, float] = field(default_factory=lambda: {"alignment": 1.0, "wholeness": 0.5, "safety": 0.5})
    temperature: float = 0.15
    tie_threshold: float = 0.05
    lapse_rate: float = 0.0
    side_bias: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.tie_threshold < 0:
            raise ValueError("temperature and tie_threshold must not be negative")
        if not 0 <= self.lapse_rate <= 1:
            raise ValueError(f"lapse_rate must lie in 0..1, not {self.lapse_rate}")

    def utility(self, scores: Scores) -> np.ndarray:
        """The value of `n` pictures, `[n]`, from their scores `{dimension: [n]}`."""
        missing = [d for d in self.weights if d not in scores]
        if missing:
            raise ValueError(f"scores lack {', '.join(missing)}; they have {', '.join(scores)}")
        return np.sum([w * np.asarray(scores[d], np.float64) for d, w in self.weights.items()], axis=0)

    def probabilities(self, scores_a: Scores, scores_b: Scores) -> np.ndarray:
        """P(a), P(b) and P(tie) of `n` pairs, `[n, 3]`."""
        difference = np.atleast_1d(self.utility(scores_a) - self.utility(scores_b))
        tie = np.abs(difference) < self.tie_threshold
        leaning = difference + self.side_bias
        if self.temperature > 0:
            prefers_a = expit(leaning / self.temperature)
        else:
            prefers_a = (np.sign(leaning) + 1) / 2
        sober = np.stack([(1 - tie) * prefers_a, (1 - tie) * (1 - prefers_a), tie], axis=1)
        return (1 - self.lapse_rate) * sober + self.lapse_rate / len(ANSWERS)

    def vote(self, scores_a: Scores, scores_b: Scores, pairs: Sequence[object]) -> np.ndarray:
        """The answers ("a", "b" or "tie") on `n` pairs, `[n]`; `pairs` are their ids, unique per showing."""
        bounds = self.probabilities(scores_a, scores_b).cumsum(axis=1)
        if len(pairs) != len(bounds):
            raise ValueError(f"{len(pairs)} pair ids for {len(bounds)} pairs")
        drawn = np.array([keyed_uniform(self.seed, pair) for pair in pairs])
        return np.array(ANSWERS)[(drawn[:, None] >= bounds[:, :2]).sum(axis=1)]


@dataclass(frozen=True)
class Panel:
    """Several annotators; each pair is judged by `k` of them, drawn by the pair's id."""

    annotators: tuple[Annotator, ...]
    seed: int = 0

    def votes(self, scores_a: Scores, scores_b: Scores, pairs: Sequence[object], k: int = 3) -> np.ndarray:
        """The answers of `k` different annotators on each of `n` pairs, `[n, k]`."""
        if not 1 <= k <= len(self.annotators):
            raise ValueError(f"{k} votes a pair asked of a panel of {len(self.annotators)}")
        answers = np.stack([a.vote(scores_a, scores_b, pairs) for a in self.annotators], axis=1)
        return np.take_along_axis(answers, self.seats(pairs)[:, :k], axis=1)

    def seats(self, pairs: Sequence[object]) -> np.ndarray:
        """The annotators' indices in the order in which they are asked about each pair, `[n, members]`."""
        keys = [[keyed_uniform(f"{self.seed}/seat/{i}", p) for i in range(len(self.annotators))] for p in pairs]
        return np.argsort(np.array(keys).reshape(len(pairs), -1), axis=1)


def panel(
    n: int,
    weights: Mapping[str, float] | None = None,
    disagreement: float = 0.3,
    seed: int = 0,
    **traits: float,
) -> Panel:
    """`n` annotators around common `weights`, each weight off by a log-normal factor of deviation `disagreement`.

    `traits` (`temperature`, `tie_threshold`, `lapse_rate`, `side_bias`) are shared by all.
    """
    common = dict(weights) if weights is not None else dict(Annotator().weights)
    members = []
    for i in range(n):
        factors = np.exp(disagreement * np.random.default_rng([seed, i]).standard_normal(len(common)))
        own = {d: float(w * f) for (d, w), f in zip(common.items(), factors, strict=True)}
        members.append(Annotator(weights=own, seed=seed * 1_000_003 + i, **traits))
    return Panel(tuple(members), seed)


def preference(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(a over b) `[n]`, a tie counting one half, and how many votes stand behind it `[n]`, from votes `[n, k]`."""
    share = ((votes == "a") + 0.5 * (votes == "tie")).mean(axis=1)
    return share, np.full(len(votes), votes.shape[1])


def keyed_uniform(seed: object, key: object) -> float:
    """A number in [0, 1) that depends on `(seed, key)` alone."""
    digest = hashlib.blake2b(f"{seed}|{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
