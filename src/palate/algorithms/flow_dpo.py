"""Improving Video Generation with Human Feedback (VideoAlign; Liu et al., arXiv:2501.13918), section 4.2: Flow-DPO.

    L = -E_{(c, x_w, x_l), t, e} log sigma( -beta_t/2 * [ (err_w - err_w_ref) - (err_l - err_l_ref) ] )

with err = MEAN over latent dimensions of the squared error of the velocity, at a time t in [0, 1], 1 is noise, and a
noise e shared by the pair; on any model that predicts a velocity, of pictures or videos.

`beta` follows the paper's pseudo-code, a half of it multiplying errors, which only makes sense of MEAN errors although
that sums over the whole batch; the port to SD3.5 has MEAN errors and 100 (up to 2000 where it is unstable).

`weighting` is the paper's question. Carried over exactly from diffusion, beta_t = beta (1 - t)^2, which is the error of
the noise; the authors find a constant beta better. (1 - t)^2 averages 1/3 over uniform times (0.29 over logit-normal
ones): a fair comparison gives it three times the beta, too.

The port draws logit-normal times and looks them up in SD3's schedule, which moves them towards noise: `time_shift: 3`.

Departures from the paper:
1. Any number of candidates K, soft labels, ties dropped or kept, as in Diffusion-DPO here.
2. Some prompts can be emptied (`prompt_dropout`, 0 as there).
3. `ipo`, `hinge`, `robust`, `label_smoothing` and `sft_weight` are later papers', not this one's.
The paper labels pairs by its reward model, offline: `data.relabel` does so with any scorer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from palate import feedback, likelihood, paths
from palate.models.contracts import Denoiser, Draw, LossOutput, Needs, Path, PreferenceBatch, State


class Config(feedback.PairOptions):
    """Defaults are the paper's (table 10)."""

    beta: feedback.Beta = Field(500.0, description="The leash; half of it multiplies MEAN errors; or auto.")
    weighting: Literal["constant", "one_minus_t_squared"] = Field("constant", description="How beta depends on t.")
    time_density: Literal["uniform", "logit_normal"] = Field("uniform", description="How training times are drawn.")
    time_shift: float = Field(1.0, gt=0, description="Moves those times towards noise, as SD3 does; 1 is off.")
    prompt_dropout: float = Field(0.0, ge=0, le=1, description="Share of the prompts emptied, for both of a pair.")


NEEDS = Needs(source="offline", reference="frozen", k=None, start_loss=math.log(2))


def start_loss(config: Config) -> float | None:
    """Known while the policy is its reference, unless an anchor is added."""
    return feedback.start_loss(config, config.beta)


def init(policy: Denoiser, config: Config) -> State:
    """Nothing to remember between steps. Raises ValueError for a model that predicts no velocity."""
    paths.check_velocity(policy.path, "flow_dpo", "diffusion_dpo")
    return State()


def sample_t(path: Path, config: Config, n: int, generator: torch.Generator) -> Tensor:
    """As `time_density` and `time_shift` say."""
    drawn = (paths.uniform if config.time_density == "uniform" else paths.logit_normal)(n, generator)
    return paths.shifted(drawn, config.time_shift)


def observe(metrics: Mapping[str, float], state: State, config: Config) -> None:
    """Brings an automatic beta up to date."""
    feedback.observe(metrics, state, config, config.beta)


def lacking(batch: PreferenceBatch, config: Config) -> str:
    """Why the rows teach nothing, and the mend; empty if one of them does."""
    return feedback.undecided(batch)


def step(
    policy: Denoiser, reference: Denoiser, batch: PreferenceBatch, draw: Draw, state: State, config: Config
) -> LossOutput:
    """One loss over B prompts, weighted by `batch.weight`; prompts without a judged pair weigh nothing."""
    logps, ref_logps = likelihood.with_reference(policy, reference, batch, draw)
    scale = (1 - draw.t) ** 2 if config.weighting == "one_minus_t_squared" else None
    beta = feedback.beta_of(config.beta, state)
    return feedback.pair_output(logps, ref_logps, batch, beta / 2, config, scale)
