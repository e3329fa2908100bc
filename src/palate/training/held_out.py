"""What the losses on held-out rows say: which weights to keep, when to stop, and what to warn of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from palate.config import TrainingSettings
from palate.training.processes import Processes


def judgement(metrics: Mapping[str, float], processes: Processes, *, judged: bool) -> tuple[float | None, bool]:
    """The loss by which weights are kept, and whether to stop at once: of judges held out, which only the first process
    asks and then tells the others, or of the rows kept aside."""
    if not judged:
        return metrics.get("validation/loss"), False
    told = processes.tell(json.dumps([metrics.get("guard/loss"), metrics.get("guard/alarm", 0.0) > 0]))
    loss, alarm = json.loads(told or "[null, false]")
    return loss, bool(alarm)


def due(step: int, settings: TrainingSettings) -> bool:
    """Whether an evaluation follows the step."""
    every = settings.evaluate_every
    return every is not None and (step % every == 0 or step == settings.max_steps)


class HeldOut:
    """The verdicts so far. start: the loss before training. lowest: the lowest loss since, its step, and the weights.

    A loss that is not finite is never the lowest, and no gain.
    """

    def __init__(self, patience: int | None, *, judged: bool = False) -> None:
        """patience: evaluations without a gain before it is enough; without any, no weights are kept and none stops.

        judged: the losses are of judges held out, which keep the best weights and stop a run by other rules.
        """
        self._patience, self._without_gain, self.judged = 0 if judged else patience or 0, 0, judged
        self.start: float | None = None
        self.lowest: dict[str, Any] | None = None

    @property
    def keeps(self) -> bool:
        """Whether the best weights are kept."""
        return self.judged or self._patience > 0

    @property
    def best(self) -> dict[str, Any] | None:
        """The step and the weights to be exported; None if others than the best are."""
        return self.lowest if self.keeps else None

    def see(self, step: int, loss: float | None, weights: Mapping[str, Tensor]) -> bool:
        """Takes an evaluation of `weights` into account, None if there was no loss; whether it is time to stop."""
        if loss is None:
            return False
        if step == 0:
            self.start = loss
        elif math.isfinite(loss) and (self.lowest is None or loss < self.lowest["loss"]):
            copies = {name: weight.detach().clone() for name, weight in weights.items()} if self.keeps else {}
            self.lowest, self._without_gain = {"loss": loss, "step": step, "weights": copies}, 0
        else:
            self._without_gain += 1
        return 0 < self._patience <= self._without_gain

    def warnings(self) -> list[str]:
        """What speaks against the weights that are exported."""
        if self.lowest is None:
            return ["no held-out loss was finite, so nothing tells good weights from bad"] if self._without_gain else []
        if self.start is None or not self.lowest["loss"] >= self.start:
            return []
        if self.judged:
            return [f"by the judges held out nothing was better than the start, at best step {self.lowest['step']}"]
        return [
            f"training did not help on held-out prompts: their lowest loss, {self.lowest['loss']:.4f} at step "
            f"{self.lowest['step']}, is not below the {self.start:.4f} of the start, and the exported weights may be "
            "worse than those it began with; lower training.learning_rate, or collect more preferences"
        ]

    def state(self) -> dict[str, Any]:
        return {"start": self.start, "lowest": self.lowest, "without_gain": self._without_gain}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.start, self.lowest, self._without_gain = state["start"], state["lowest"], state["without_gain"]
