"""Supervised fine-tuning on preferred samples: the baseline every preference method must beat.

    L = E_{(c, x), t, e} err(x),    x the candidate that wins most and loses least among its prompt's

as "preferred image" fine-tuning in D3PO (arXiv:2311.13231, table 1) and "SFT" in Diffusion-DPO (arXiv:2311.12908,
section 5). err is the MEAN squared denoising error. No reference.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from palate import feedback, likelihood, metrics
from palate.config import Strict
from palate.models.contracts import Denoiser, Draw, LossOutput, Needs, PreferenceBatch, State


class Config(Strict):
    prompt_dropout: float = Field(0.1, ge=0, le=1, description="Share of the prompts emptied.")


NEEDS = Needs(source="offline", reference="none", k=None)


def init(policy: Denoiser, config: Config) -> State:
    """Nothing to remember between steps."""
    return State()


def winners(batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Which candidate wins most and loses least [B], and whether it wins at all [B]."""
    wins = metrics.decided(batch.prefer, batch.mask)
    balance = wins.sum(2) - wins.sum(1)
    best = balance.argmax(1)
    return best, balance.gather(1, best[:, None]).squeeze(1) > 0


def lacking(batch: PreferenceBatch, config: Config) -> str:
    """Why the rows teach nothing, and the mend; empty if one of them does."""
    return feedback.undecided(batch)


def step(
    policy: Denoiser, reference: None, batch: PreferenceBatch, draw: Draw, state: State, config: Config
) -> LossOutput:
    """The denoising error of each prompt's winner; prompts where nothing won weigh nothing. One pass a prompt."""
    (best, won), row = winners(batch), torch.arange(len(batch), device=batch.x0.device)
    weight = batch.weight * won

    cond = batch.cond.where(draw.drop, batch.null)
    error = -likelihood.denoising(policy, batch.x0[row, best, None], cond, draw).squeeze(1)
    return LossOutput(
        loss_sum=(error * weight).sum(),
        weight=weight.sum(),
        metrics={"error/chosen": metrics.mean(error[weight > 0])},
    )
