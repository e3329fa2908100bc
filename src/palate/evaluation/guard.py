"""The guard against reward hacking: the rewards trained on rise while a judge held out, or diversity, falls.

Each change is tested on prompts: the paired differences' means over each prompt, Student's t, one-sided. A run that is
looked at many times would raise an alarm by chance: `level` is shared among all tests made (Bonferroni), so that it is
the chance of any false alarm in a run.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from palate.evaluation.win_rate import per_prompt

LEVEL = 0.01  # chance of a false alarm in a whole run
DIVERSITY_LOSS = 0.1  # share of the base's diversity that may be lost before it is a fall


@dataclass(frozen=True)
class Change:
    """A mean paired change over n_prompts prompts, and between what it lies, each end at the level of the test."""

    name: str
    mean: float
    low: float
    high: float
    n_prompts: int


@dataclass(frozen=True)
class Guard:
    """rewards: of what was trained on; fallen: of the held-out judges and diversity, those surely below what they were.

    alarm: some reward, or the training as such, surely rose, and something fell. says: it in words, "" without alarm.
    """

    alarm: bool
    rewards: tuple[Change, ...]
    held_out: tuple[Change, ...]
    fallen: tuple[str, ...]
    says: str


def look(
    rewards: Mapping[str, tuple[ArrayLike, ArrayLike]],
    held_out: Mapping[str, tuple[ArrayLike, ArrayLike]],
    prompts: Sequence[Hashable],
    *,
    diversity: tuple[ArrayLike, ArrayLike] | None = None,
    looks: int = 1,
    level: float = LEVEL,
) -> Guard:
    """Compares before with after: scores `{name: (before [n], after [n])}` paired by prompt and seed, higher better.

    rewards: empty where training had none but its loss, which always falls: then a fall alone is the alarm.
    diversity: each prompt's, before and after [n_prompts]; a loss of more than a tenth of it is a fall.
    looks: how many such comparisons the run makes. Names in both are rewards, and no judges.
    """
    judges = {name: pair for name, pair in held_out.items() if name not in rewards}
    tests = looks * max(1, len(judges) + (diversity is not None))
    rose = tuple(change(name, *pair, prompts, level=level / looks) for name, pair in rewards.items())
    held = [change(name, *pair, prompts, level=level / tests) for name, pair in judges.items()]
    if diversity is not None:
        before, after = (np.asarray(values, np.float64) for values in diversity)
        kept = (1 - DIVERSITY_LOSS) * before
        held.append(change("diversity", kept, after, list(range(len(kept))), level=level / tests))
    fallen = tuple(found.name for found in held if found.high < 0)
    grown = [found.name for found in rose if found.low > 0]
    alarm = bool(fallen) and (bool(grown) or not rewards)
    return Guard(alarm, rose, tuple(held), fallen, _says(grown, fallen) if alarm else "")


def change(
    name: str, before: ArrayLike, after: ArrayLike, prompts: Sequence[Hashable], *, level: float = LEVEL
) -> Change:
    """The mean of after - before over prompts; infinite ends where fewer than two prompts are known, or so few changed
    by exactly the same that chance could have turned all of them one way at this level."""
    from scipy.stats import t

    off = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    if np.isnan(off).all():
        return Change(name, math.nan, -math.inf, math.inf, 0)
    means = per_prompt(off, prompts)
    if len(means) < 2 or (np.ptp(means) == 0 and means[0] != 0 and 0.5 ** len(means) > level):
        return Change(name, float(means.mean()), -math.inf, math.inf, len(means))
    half = float(t.ppf(1 - level, len(means) - 1)) * float(means.std(ddof=1)) / math.sqrt(len(means))
    middle = float(means.mean())
    return Change(name, middle, middle - half, middle + half, len(means))


def _says(grown: Sequence[str], fallen: Sequence[str]) -> str:
    rise = f"{_listed(grown)} rose while " if grown else ""
    return (
        f"{rise}{_listed(fallen)} fell: what is trained on is being gamed rather than met; look at the pictures, "
        "train for fewer steps, or keep the policy nearer to its reference"
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
