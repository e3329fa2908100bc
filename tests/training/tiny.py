"""A policy with attention-like layers for adapters, and complete small runs, offline and online, on top of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from palate.algorithms import d3po, diffusion_dpo
from palate.config import LoraSettings, TrainingSettings
from palate.models.contracts import Rollout
from palate.training import adapters
from palate.training.offline import Offline
from palate.training.online import Online
from palate.training.processes import Processes
from palate.training.sources import Drawing, PreferenceRow
from palate.training.trainer import Trainer
from tests import toys

PROMPTS = [f"prompt {index}" for index in range(8)]
ONLINE = SimpleNamespace(  # D3PO with a statistic that only a checkpoint can bring back
    NEEDS=d3po.NEEDS,
    Config=d3po.Config,
    init=lambda policy, config: d3po.State(tensors={"mean": torch.zeros(())}, values={"rounds": 0, "seen": {}}),
    step=d3po.step,
)


class Network(nn.Module):
    """[x, embedding, clock] -> 4, through one hidden layer whose maps are called as attention's are."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16)
        self.dropout = nn.Dropout(0.1)
        self.to_out = nn.ModuleList([nn.Linear(16, 4)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.to_q(x) * self.to_k(x)) + self.to_v(x)
        return self.to_out[0](self.dropout(hidden))


class TinyPolicy(toys.ToyDenoiser):
    def __init__(self, kind: str = "epsilon", seed: int = 0) -> None:
        super().__init__(kind, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = Network().eval()


def policy_with_adapter(kind: str = "epsilon") -> TinyPolicy:
    policy = TinyPolicy(kind)
    adapters.add_lora(policy, LoraSettings(rank=2, alpha=2.0))
    return policy


def preference_rows(policy: TinyPolicy, n: int = 10, k: int = 2) -> list[PreferenceRow]:
    """Rows whose first candidate is preferred and lies nearer to 1 everywhere."""
    batch = toys.preferences(policy, n, k)
    better = torch.tensor([1.0] + [-1.0] * (k - 1)).view(k, 1, 1, 1)
    return [
        PreferenceRow(
            id=batch.ids[i],
            prompt=batch.ids[i],
            x0=0.3 * batch.x0[i] + better,
            cond=batch.cond[i],
            prefer=batch.prefer[i],
            votes=batch.votes[i],
            scores=batch.scores[i],
            mask=batch.mask[i],
        )
        for i in range(n)
    ]


def settings(**changes: Any) -> TrainingSettings:
    base = {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 2, "ema_decay": 0.9}
    return TrainingSettings(**{**base, **changes})


def offline(folder: Path, processes: Processes | None = None, rows: Any = None, **changes: Any) -> Trainer:
    """Diffusion-DPO from rows that are given or made."""
    policy, chosen = policy_with_adapter(), settings(**changes)
    config = diffusion_dpo.Config(beta_dpo=20.0, prompt_dropout=0.2)
    source = Offline(
        rows or preference_rows(policy),
        policy.condition([""]),
        Drawing(0, policy.path, config.prompt_dropout),
        batch_size=chosen.batch_size,
        micro_batch_size=chosen.micro_batch_size,
        held_out_share=0.2 if chosen.evaluate_every else 0.0,
        processes=processes,
    )
    reference = adapters.reference_of(policy, "base")
    return Trainer(
        policy, diffusion_dpo, config, source, chosen, folder,
        reference=reference, processes=processes, progress=False, tensorboard=False,
    )  # fmt: skip


def brightness(prompts: list[str], media: list[Tensor]) -> dict[str, Tensor]:
    return {"brightness": torch.stack([medium.mean() for medium in media])}


def roll_out(policy: TinyPolicy, prompts: list[str], ids: list[str], *, seed: int, steps: int = 3) -> Rollout:
    """Each sample from its own seed, as `sampling.rollout`."""
    made = [
        toys.roll_out(policy, [prompt], seed=f"{seed}/{name}", steps=steps)
        for prompt, name in zip(prompts, ids, strict=True)
    ]
    first = made[0]
    return Rollout(
        ids=ids,
        prompts=prompts,
        x=torch.cat([one.x for one in made]),
        t=first.t,
        logps=torch.cat([one.logps for one in made]),
        std=first.std,
        cond=policy.condition(prompts, guided=True),
        media=[medium for one in made for medium in one.media],
        guidance_scale=first.guidance_scale,
        kernel=first.kernel,
    )


def online(folder: Path, processes: Processes | None = None, scorer: Any = brightness, **changes: Any) -> Trainer:
    """D3PO against a rolling reference, with a running mean and a history in its state.

    A flow model: an untrained one of noise leaves latents of 30 before a step of std 0.03, where float32 is too coarse.
    """
    policy = policy_with_adapter("velocity")
    chosen = settings(**{"max_steps": 9, "batch_size": 12, "checkpoint_every": 3, **changes})
    config = d3po.Config()
    reference = adapters.reference_of(policy, "round:2")

    def prepare(rollout: Rollout, feedback: Any, state: Any) -> Any:
        state.tensors["mean"] = 0.5 * state.tensors["mean"] + 0.5 * feedback["brightness"].nanmean().float()
        state.values["rounds"] += 1
        state.values["seen"] |= dict.fromkeys(rollout.prompts, state.values["rounds"])
        return d3po.prepare(rollout, feedback, state, config)

    source = Online(
        PROMPTS, lambda prompts, ids, seed: roll_out(policy, prompts, ids, seed=seed), scorer, prepare,
        toys.kernel_of(policy), k=2, prompts_per_round=4, inner_epochs=2, batch_size=chosen.batch_size,
        micro_batch_size=chosen.micro_batch_size, on_round=reference.begin_round, processes=processes,
    )  # fmt: skip
    return Trainer(
        policy, ONLINE, config, source, chosen, folder,
        reference=reference, processes=processes, progress=False, tensorboard=False,
    )  # fmt: skip
