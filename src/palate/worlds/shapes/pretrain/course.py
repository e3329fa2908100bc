"""A stage's clock, learning rate and checkpoint.

A stage ends after its steps or its minutes, whichever comes first; the learning rate follows the nearer end. Batches
are keyed by (seed, step), so that a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage trains."""

    steps: int
    minutes: float
    batch: int
    peak_rate: float
    pictures: int
    seed: int


class Course:
    """A stage's clock and checkpoint: weights, optimiser state and progress, as safetensors and JSON."""

    def __init__(self, name: str, plan: Plan, modules: dict[str, nn.Module], folder: Path, weight_decay: float):
        self.name, self.plan, self.modules, self.folder = name, plan, modules, folder / name
        self.parameters = {f"{m}.{k}": p for m, module in modules.items() for k, p in module.named_parameters()}
        trained = [p for p in self.parameters.values() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=plan.peak_rate, weight_decay=weight_decay, fused=True)
        self.step, self.seconds, self.extra = 0, 0.0, dict[str, Tensor]()

    def progress(self) -> float:
        return max(self.step / self.plan.steps, self.seconds / (60 * self.plan.minutes))

    def steps(self) -> Iterator[np.random.Generator]:
        """One keyed generator per step, until the plan is done. Sets the learning rate and prints progress."""
        started, shown = time.monotonic() - self.seconds, -1e9
        while self.progress() < 1:
            rate = self.plan.peak_rate * min(1, (self.step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * self.progress()))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            yield np.random.default_rng([self.plan.seed, self.step])
            self.step += 1
            self.seconds = time.monotonic() - started
            if self.seconds - shown > 20:
                shown = self.seconds
                left = self.seconds * (1 / self.progress() - 1)
                print(f"{self.name} step {self.step} {self.seconds / 60:.1f} min, {left / 60:.1f} left", flush=True)

    def update(self, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weights/{k}": p.detach() for k, p in self.parameters.items()}
        for name, p in self.parameters.items():
            tensors |= {f"optimiser/{k}/{name}": v for k, v in self.optimiser.state.get(p, {}).items()}
        tensors |= {f"extra/{k}": v for k, v in self.extra.items()}
        note = {"step": str(self.step), "seconds": str(self.seconds)}
        aside = self.folder / "checkpoint.partial"
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, aside, {"progress": json.dumps(note)})
        aside.replace(self.folder / "checkpoint.safetensors")

    def resume(self) -> bool:
        """Take up the stored checkpoint, if there is one."""
        file = self.folder / "checkpoint.safetensors"
        if not file.exists():
            return False
        with safe_open(file, "pt") as opened:
            note = json.loads(opened.metadata()["progress"])
        self.step, self.seconds = int(note["step"]), float(note["seconds"])
        state: dict[str, dict[str, Tensor]] = {}
        for key, value in load_file(file).items():
            kind, _, rest = key.partition("/")
            if kind == "weights":
                self.parameters[rest].data.copy_(value)
            elif kind == "optimiser":
                slot, _, name = rest.partition("/")
                state.setdefault(name, {})[slot] = value
            else:
                self.extra[rest] = value
        for name, slots in state.items():  # in the memory layout of the parameter, as the fused optimiser expects
            p = self.parameters[name]
            alike = {k: v for k, v in slots.items() if v.shape == p.shape}
            self.optimiser.state[p] = slots | {k: torch.empty_like(p).copy_(v) for k, v in alike.items()}
        print(f"{self.name}: resumed at step {self.step}", flush=True)
        return True


def history(work: Path) -> dict[str, dict[str, int]]:
    """How many steps and seconds each stage has trained, by the checkpoints in `work`."""
    found = {}
    for file in sorted(work.glob("*/checkpoint.safetensors")):
        with safe_open(file, "pt") as opened:
            note = json.loads(opened.metadata()["progress"])
        found[file.parent.name] = {"steps": int(note["step"]), "seconds": round(float(note["seconds"]))}
    return found
