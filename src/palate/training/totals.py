"""Losses and metrics of a step as sums with counts, added up before anything is divided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from palate.models.contracts import LossOutput
from palate.training.processes import Sums


@dataclass
class Totals:
    """Sums over micro-batches. numbers: [4] on the device: loss, weight, rows left out, whether to stop."""

    numbers: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def zeros(cls, device: torch.device) -> Totals:
        return cls(torch.zeros(4, device=device))

    @classmethod
    def of(cls, outs: Iterable[LossOutput], device: torch.device) -> Totals:
        """Of all losses that are finite; the others are counted."""
        totals = cls.zeros(device)
        for out in outs:
            if bool(out.loss_sum.isfinite()):
                totals.add(out)
            else:
                totals.numbers[2] += 1
        return totals

    @property
    def loss_sum(self) -> Tensor:
        return self.numbers[0]

    @property
    def left_out(self) -> float:
        return float(self.numbers[2])

    def add(self, out: LossOutput) -> None:
        """One micro-batch's."""
        self.numbers[0] += out.loss_sum.detach()
        self.numbers[1] += out.weight.detach()
        for name, (total, count) in out.metrics.items():
            before = self.metrics.get(name)
            self.metrics[name] = (total, count) if before is None else (before[0] + total, before[1] + count)

    def sums(self) -> Sums:
        """Metrics as plain numbers: one transfer from the device."""
        if not self.metrics:
            return {}
        flat = [part.detach().to(self.numbers.device).double() for pair in self.metrics.values() for part in pair]
        values = torch.stack(flat).tolist()
        return {name: (values[2 * i], values[2 * i + 1]) for i, name in enumerate(self.metrics)}


def means(sums: Sums, prefix: str = "") -> dict[str, float]:
    """Sum over count by name; names without a count are left out."""
    return {f"{prefix}{name}": total / count for name, (total, count) in sorted(sums.items()) if count}


def finite(gradients: list[Tensor], loss: Tensor) -> bool:
    """Whether a loss and all of its gradients are."""
    return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)) & torch.isfinite(loss))
