"""The guard on the way: a run that is looked at, and stopped when its rewards rise while judges held out fall.

Each look's scores are kept in the run's `evaluations/`, so that a resumed run goes on with what it saw.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palate.evaluation import diversity, guard
from palate.evaluation.compare import Arm
from palate.evaluation.win_rate import per_prompt

MOST = 3.0  # spreads that one judge may count for


class Guarding:
    """What a run's looks say. is_reward: whether a score is one that training rewards; the others are held out.

    looks: how many the whole run has; every two of them may be compared, and the chance of a false alarm is shared.
    """

    def __init__(self, folder: Path, is_reward: Callable[[str], bool], looks: int) -> None:
        self._folder, self._is_reward = folder, is_reward
        self._pairs = max(1, looks * (looks - 1) // 2)

    def look(self, step: int, arm: Arm) -> dict[str, float]:
        """`guard/alarm`, 1 or 0, and `guard/loss`: how far the held-out judges are below the start, in units of their
        spread over prompts; the weights with the lowest are the ones to keep."""
        seen = self._earlier(step)
        now = self._kept(step, arm)
        if not seen:
            return {"guard/alarm": 0.0, "guard/loss": 0.0}
        first, best = seen[0], min(seen, key=lambda look: self._loss(seen[0], look))
        rewards, held = self._split(list(now["scores"]))
        rose = {name: (first["scores"][name], now["scores"][name]) for name in rewards}
        fell = {name: (best["scores"][name], now["scores"][name]) for name in held}
        spread = (best["diversity"], now["diversity"]) if now["diversity"] and best["diversity"] else None
        found = guard.look(rose, fell, now["prompts"], diversity=spread, looks=self._pairs)
        if found.alarm:
            print(f"warning: step {step}: {found.says}")
        return {"guard/alarm": float(found.alarm), "guard/loss": self._loss(first, now)}

    def _split(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        rewards = [name for name in names if self._is_reward(name)]
        return rewards, [name for name in names if name not in rewards]

    def _loss(self, first: dict[str, Any], look: dict[str, Any]) -> float:
        _, held = self._split(list(look["scores"]))
        return -float(sum(_rise(first["scores"][name], look["scores"][name], look["prompts"]) for name in held))

    def _kept(self, step: int, arm: Arm) -> dict[str, Any]:
        """This look, written down."""
        try:
            spread = diversity.spread(diversity.pixels(arm.media), arm.prompts)[0].tolist()
        except TypeError:  # media without pixels
            spread = []
        scores = {name: [float(value) for value in values] for name, values in arm.scores.items()}
        found = {"step": step, "prompts": list(arm.prompts), "scores": scores, "diversity": spread}
        self._folder.mkdir(exist_ok=True)
        aside = self._folder / "look.partial"
        aside.write_text(json.dumps(found) + "\n", encoding="utf-8")
        aside.replace(self._folder / f"step_{step:06d}.json")
        return found

    def _earlier(self, step: int) -> list[dict[str, Any]]:
        """The looks before this step, in order; later ones are of a course that was not taken."""
        looks = []
        for path in sorted(self._folder.glob("step_*.json")):
            if int(path.stem.removeprefix("step_")) < step:
                looks.append(json.loads(path.read_text(encoding="utf-8")))
        return looks


def _rise(before: Sequence[float], after: Sequence[float], prompts: Sequence[str]) -> float:
    """The mean change over prompts in units of the spread before; 0 where nothing is known.

    A judge that said the same of all at the start has no spread then: that of the changes is the unit where it is
    greater, and no judge counts for more than MOST units, so that none decides alone for having been constant.
    """
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    known = ~(np.isnan(a) | np.isnan(b))
    if not known.any():
        return 0.0
    names = [prompt for prompt, there in zip(prompts, known, strict=True) if there]
    start = per_prompt(a[known], names)
    off = per_prompt(b[known], names) - start
    unit = max(float(start.std()), float(off.std()), abs(float(off.mean())) / MOST)
    return float(off.mean()) / unit if unit > 0 else 0.0
