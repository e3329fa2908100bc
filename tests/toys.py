"""A policy small enough to check by hand: a linear network on 1x2x2 latents, with the contract of a real one."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from palate import transitions
from palate.models.contracts import Condition, PreferenceBatch, Rollout
from palate.paths import DDPMPath, FlowPath
from palate.randomness import generator, generators, normal

SHAPE = (1, 2, 2)


def betas_to_alphas_cumprod(steps: int = 1000) -> Tensor:
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2, 0)


class ToyDenoiser:
    """predict(x_t) = W [x_t, embedding(prompt), clock]; guidance as usual, u + g (c - u)."""

    def __init__(self, kind: str = "epsilon", seed: int = 0) -> None:
        self.path = FlowPath() if kind == "velocity" else DDPMPath(betas_to_alphas_cumprod(), kind)
        self.scale = 1.0 if kind == "velocity" else 1000.0
        self.module = nn.Linear(4 + 3 + 1, 4)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator("toy", seed)) * 0.3)

    def condition(self, prompts, *, guided: bool = False) -> Condition:
        rows = {"cond/embedding": torch.stack([torch.randn(3, generator=generator("prompt", p)) for p in prompts])}
        if guided:
            rows["uncond/embedding"] = torch.zeros(len(prompts), 3)
        return Condition(rows)

    def _branch(self, x_t: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        clock = (t.float() / self.scale)[:, None]
        return self.module(torch.cat([x_t.flatten(1), embedding, clock], 1)).view_as(x_t)

    def predict(self, x_t, t, cond, guidance_scale=None):
        out = self._branch(x_t, t, cond.rows["cond/embedding"])
        if guidance_scale is None:
            return out
        free = self._branch(x_t, t, cond.rows["uncond/embedding"])
        return free + guidance_scale * (out - free)

    def encode(self, media):
        return torch.stack(list(media))

    def decode(self, x0):
        return list(x0)


def kernel_of(policy: ToyDenoiser):
    if isinstance(policy.path, FlowPath):
        return transitions.FlowSDE(policy.path, 0.7)
    return transitions.DDIM(policy.path, 1.0, float(policy.path.alphas_cumprod[0]))


@torch.no_grad()
def roll_out(policy: ToyDenoiser, prompts: list[str], seed: int = 0, steps: int = 5) -> Rollout:
    """A rollout by hand, step by step, as a pipeline with a stochastic scheduler would make it."""
    flow = isinstance(policy.path, FlowPath)
    times = torch.linspace(1, 0, steps + 1) if flow else torch.tensor([*range(999, 0, -1000 // steps), -1])
    cond, kernel = policy.condition(prompts, guided=True), kernel_of(policy)
    ids = [f"{row}" for row in range(len(prompts))]
    sources = generators(seed, ids)
    chain, logps, stds = [normal(SHAPE, sources)], [], []
    for t, t_prev in itertools.pairwise(times):
        n = len(prompts)
        mean, std = kernel.mean_std(
            policy.predict(chain[-1], t.expand(n), cond, 2.0), chain[-1], t.expand(n), t_prev.expand(n)
        )
        chain.append(mean + std.view(-1, 1, 1, 1) * normal(SHAPE, sources))
        logps.append(transitions.gaussian_log_prob(chain[-1], mean, std))
        stds.append(std[0])
    x = torch.stack(chain, 1)
    return Rollout(ids, prompts, x, times, torch.stack(logps, 1), torch.stack(stds), cond, list(x[:, -1]), 2.0, kernel)


def preferences(policy: ToyDenoiser, n: int = 4, k: int = 2, seed: int = 0) -> PreferenceBatch:
    """n prompts with k candidates each; candidate i is preferred over j for i < j."""
    source = generator("pairs", seed)
    prompts = [f"prompt {row}" for row in range(n)]
    order = torch.arange(k)
    prefer = (order[:, None] < order[None]).float().masked_fill(torch.eye(k, dtype=torch.bool), torch.nan)
    return PreferenceBatch(
        ids=prompts,
        visits=torch.zeros(n, dtype=torch.long),
        x0=torch.randn(n, k, *SHAPE, generator=source),
        mask=torch.ones(n, k, dtype=torch.bool),
        cond=policy.condition(prompts),
        null=policy.condition([""]),
        prefer=prefer.expand(n, k, k).clone(),
        votes=torch.ones(n, k, k),
        scores=torch.randn(n, k, 2, generator=source),
        weight=torch.ones(n),
    )
