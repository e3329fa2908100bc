"""The contracts between floors: what a model, a scorer and an algorithm must offer.

Letters in shapes: B prompts, K candidates of one prompt, N rows of any kind, T denoising steps or tokens,
D dimensions of a score, C F H W latent channels, frames, height, width; `...` stands for a latent's own shape.

Everything here is a small protocol or a frozen record: no behaviour is inherited from this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from palate.models.condition import Condition as Condition

PredictionKind = Literal["epsilon", "v", "sample", "velocity"]
Media = Any  # a PIL picture, a list of them (video), a waveform [C, L]


# --- randomness -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """The randomness of one training step, an argument and never a hidden state.

    Keyed per row by (seed, sample id, visit), so that batch size, order and world size do not change it.
    The same for policy and reference, and t for all K candidates of a prompt.

    t: [B], in the path's own clock. noise: [B, ...], shared by the K candidates, or [B, K, ...], one each.
    drop: [B] bool, prompts to be emptied.
    """

    t: Tensor
    noise: Tensor
    drop: Tensor

    def __len__(self) -> int:
        return len(self.t)


# --- models -----------------------------------------------------------------------------------------------------------


@runtime_checkable
class Path(Protocol):
    """How data becomes noise, and what a network predicts on the way. See `palate.paths`."""

    @property
    def kind(self) -> PredictionKind: ...

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]: ...
    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def to_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...
    def to_noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...
    def snr(self, t: Tensor) -> Tensor: ...
    def sample_t(self, n: int, generator: torch.Generator) -> Tensor: ...


class Kernel(Protocol):
    """The Gaussian transition of one stochastic denoising step. See `palate.transitions`."""

    def mean_std(self, prediction: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [N, ...] and standard deviation [N] of x_{t_prev} given x_t [N, ...] and the prediction there."""
        ...


class Denoiser(Protocol):
    """A diffusion or flow model seen from above: no pipeline, scheduler or text encoder shows through."""

    @property
    def path(self) -> Path: ...

    @property
    def module(self) -> nn.Module: ...

    def condition(self, prompts: Sequence[str], *, guided: bool = False) -> Condition:
        """Conditioning of B prompts; `guided` adds the unconditional branch. Memoised per prompt."""
        ...

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float | None = None) -> Tensor:
        """The network's prediction [N, ...] of `path.kind` at x_t [N, ...], t [N]; None is guidance off."""
        ...

    def encode(self, media: Sequence[Media]) -> Tensor:
        """Media to x0 [n, ...] in the path's coordinates (the mode, not a sample, of the codec's posterior)."""
        ...

    def decode(self, x0: Tensor) -> list[Media]: ...


class TokenModel(Protocol):
    """An autoregressive language model over text or audio tokens."""

    @property
    def module(self) -> nn.Module: ...

    def logits(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Next-token logits [N, L, V] of tokens [N, L] with attention mask [N, L]."""
        ...

    def encode(self, prompts: Sequence[str], completions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [N, L], attention mask [N, L] and completion mask [N, L] (true where a completion's token stands)."""
        ...

    def generate(self, prompts: Sequence[str], *, seed: int, max_new_tokens: int) -> list[str]: ...


# --- feedback ---------------------------------------------------------------------------------------------------------


class Scorer(Protocol):
    """Scores media pointwise: `{dimension: [n]}`, higher is better, NaN where it could not judge.

    It may offer, for errors before anything is sampled: `dimensions`, the names it gives, and `check(prompts)`, which
    raises ValueError for prompts it cannot judge; `judges`, the kinds of media it judges (`palate.kinds.KINDS`), best
    of its class, where `load` says by its annotation what it returns: others are then refused before anything is
    loaded; and for the golden check (`palate.doors.golden`) `reads_prompts`, or `golden = None` to go without.
    """

    def __call__(self, prompts: Sequence[str], media: Sequence[Media]) -> Mapping[str, Any]: ...


class Comparer(Protocol):
    """Compares two media of one prompt: the probability that `a` is preferred, 0.5 a tie. A person is a slow one."""

    def __call__(self, prompt: str, a: Media, b: Media) -> float: ...


# --- what flows through training --------------------------------------------------------------------------------------

Rows = TypeVar("Rows", "PreferenceBatch", "TransitionBatch")


@dataclass(frozen=True)
class PreferenceBatch:
    """Candidates of B prompts with whatever is known about which is better. Positions carry no meaning.

    ids: B sample ids, the keys of the draws. visits: [B], how often each row was drawn before.
    x0: [B, K, ...]. mask: [B, K], true where a candidate exists. cond, null: B rows and the empty prompt's one row.
    prefer: [B, K, K] = P(i over j), .5 a tie, NaN unknown. votes: [B, K, K], judgements behind it.
    scores: [B, K, D], raw. weight: [B].
    ref_logps: [B, K], the reference's log-likelihoods at these very visits' draws, where they were computed before.
    """

    ids: list[str]
    visits: Tensor
    x0: Tensor
    mask: Tensor
    cond: Condition
    null: Condition
    prefer: Tensor
    votes: Tensor
    scores: Tensor
    weight: Tensor
    ref_logps: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Rollout:
    """Stored denoising trajectories of n samples, as the pipeline's own call made them.

    x: [n, T+1, ...] fp32, x[:, 0] pure noise and x[:, T] the clean latent. t: [T+1], the clock at each.
    logps: [n, T], MEAN over latent dimensions of the transition log-density under the sampling policy.
    std: [T], of each transition; steps with std 0 carry no likelihood. cond: n rows. media: n decoded samples.
    guidance_scale: what the policy was guided with (inside the likelihood), None for off.
    """

    ids: list[str]
    prompts: list[str]
    x: Tensor
    t: Tensor
    logps: Tensor
    std: Tensor
    cond: Condition
    media: list[Media]
    guidance_scale: float | None
    kernel: Kernel

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TransitionBatch:
    """Single denoising steps of K candidates each, to be trained on in any order and any split.

    The trajectories are kept once, whatever pairs are formed of them; rows only point into them, so that the k
    candidates of a prompt at one step cost k network rows however many pairs they form.

    Of the n trajectories: x: [n, T+1, ...]. times: [T+1]. old_logps: [n, T], stored at sampling (MEAN over dims).
    cond: n rows. Of the N rows: candidate: [N, K], which trajectories. step: [N], which transition.
    signal: [N, ...], what the algorithm's `prepare` derived (an advantage [N, K], preference labels [N, K, K]).
    weight: [N].
    """

    x: Tensor
    times: Tensor
    old_logps: Tensor
    cond: Condition
    candidate: Tensor
    step: Tensor
    signal: Tensor
    weight: Tensor
    kernel: Kernel
    guidance_scale: float | None

    def __len__(self) -> int:
        return len(self.step)

    @property
    def x_t(self) -> Tensor:
        """[N, K, ...]"""
        return self.x[self.candidate, self.step[:, None]]

    @property
    def x_prev(self) -> Tensor:
        """[N, K, ...]"""
        return self.x[self.candidate, self.step[:, None] + 1]

    @property
    def t(self) -> Tensor:
        """[N]"""
        return self.times[self.step]

    @property
    def t_prev(self) -> Tensor:
        """[N]"""
        return self.times[self.step + 1]

    @property
    def logps(self) -> Tensor:
        """[N, K], of the sampling policy."""
        return self.old_logps[self.candidate, self.step[:, None]]


# Fields of a batch that belong to all of its rows.
_WHOLE = {
    PreferenceBatch: {"null"},
    TransitionBatch: {"x", "times", "old_logps", "cond", "kernel", "guidance_scale"},
}


def select(batch: Rows, index: Tensor) -> Rows:
    """The rows `index` [n] of a batch, in that order; what belongs to all rows is kept."""
    picked: dict[str, Any] = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if value is None or item.name in _WHOLE[type(batch)]:
            picked[item.name] = value
        elif isinstance(value, list):
            picked[item.name] = [value[i] for i in index.tolist()]
        else:
            picked[item.name] = value[index]
    return type(batch)(**picked)


# --- algorithms -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """What an algorithm asks of the loop, which reads this and never an algorithm's name.

    source: "offline" (preference data) or "online" (rollouts scored as it goes).
    k: candidates of a prompt, None for any number (at least 2 unless it says 1).
    reference: "none", "frozen" (`Config.reference` may say which), or "sampling" where stored log-probabilities serve.
    """

    source: Literal["offline", "online"]
    reference: Literal["none", "frozen", "sampling"] = "frozen"
    k: int | None = 2
    start_loss: float | None = None  # known value of the loss while policy = reference (ln 2 for the sigmoid)


@dataclass(frozen=True)
class LossOutput:
    """A loss as a sum and a weight, so that micro-batches and ranks add up before one division.

    loss_sum: scalar with gradient. weight: scalar, what to divide by. metrics: name -> (sum, count), both scalars.
    """

    loss_sum: Tensor
    weight: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class State:
    """An algorithm's own memory, saved in every checkpoint: named tensors, plain values, extra trained modules."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)


class Algorithm(Protocol):
    """The shape of a module `algorithms/<name>.py`; the file name is the registration.

    Config: a strict pydantic model whose defaults are the paper's or the vetted setting. NEEDS: see `Needs`.
    `init(policy, config) -> State`; `step(policy, reference, batch, draw, state, config) -> LossOutput`;
    online only, `prepare(rollout, feedback, state, config) -> TransitionBatch` with feedback `{dimension: [n]}`;
    offline, if not every row of preferences teaches something, `lacking(batch, config) -> str`: why none of these rows
    does, and the mend; empty if one does.
    It may offer, offline, `sample_t(path, config, n, generator) -> t [n]`, another density of times than the path's
    own; `start_loss(config) -> float | None`, where the loss at the reference depends on its options;
    `measure(policy, reference, micros, state, config)`, a look at rows of the data before the first step; and
    `observe(metrics, state, config)`, after every step, whose metrics are the same on all processes.
    """

    Config: type
    NEEDS: Needs
    init: Callable[..., State]
    step: Callable[..., LossOutput]
