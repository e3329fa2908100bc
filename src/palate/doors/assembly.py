"""The parts of a training run: the source of its batches, what it is held to, the loop.

Each is a function of its own, so that a script can take the ones it wants; `palate.doors.run` strings them together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from palate import likelihood, sampling
from palate.config import ConfigError, RolloutSettings, TrainingSettings
from palate.models.contracts import Rollout, Scorer, State, TransitionBatch, select
from palate.models.diffusion import DiffusionPolicy
from palate.training import adapters, hooks, known, optimisation
from palate.training.offline import Offline
from palate.training.online import Online
from palate.training.processes import join
from palate.training.sources import Drawing, PreferenceRow, Source, to_device
from palate.training.trainer import Result, Trainer, TrainingError


def check_fits(policy: Any, algorithm: Any, options: Any, recipe: str | Path) -> None:
    """Raises ConfigError, naming the recipe, for an algorithm that cannot train such a model.

    policy: with its `path`, as far as algorithms look at it to say so.
    """
    with torch.random.fork_rng():
        try:
            algorithm.init(policy, options)
        except ValueError as error:
            raise ConfigError(f"{recipe}: {error}") from None


def offline_source(
    policy: DiffusionPolicy,
    rows: Sequence[PreferenceRow],
    algorithm: Any,
    options: Any,
    settings: TrainingSettings,
    held_out: float,
    draws: int = 0,
) -> Offline:
    """Rows shuffled by the seed, a share of the prompts kept aside for validation.

    Times are drawn by the algorithm's `sample_t` where it has one, else by the path's own.
    draws: of a row, which then come again in turn; 0 for another one at every visit.
    """
    null, drop = policy.condition([""]), getattr(options, "prompt_dropout", 0.0)
    return Offline(
        rows,
        null,
        Drawing(
            settings.seed,
            policy.path,
            drop,
            times=hooks.times(algorithm, options, policy.path),
            shared_noise=getattr(options, "shared_noise", True),
            visits=draws or None,
        ),
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        held_out_share=held_out,
        prompts=getattr(rows, "prompts", None),
        device=policy.device,
        processes=join(policy.device),
    )


def online_source(
    policy: DiffusionPolicy,
    algorithm: Any,
    options: Any,
    prompts: Sequence[str],
    scorer: Scorer,
    rollout: RolloutSettings,
    settings: TrainingSettings,
    sampler: Mapping[str, Any],
    reference: adapters.Reference | None = None,
    around: Callable[[Callable[..., Rollout]], Callable[..., Rollout]] = lambda draw: draw,
) -> Online:
    """Rounds of the policy's own samples, scored and prepared by the algorithm. around: is put around the drawing."""
    sample = partial(
        sampling.rollout,
        policy,
        batch_size=rollout.batch_size,
        shared_noise=getattr(options, "shared_noise", False),
        **sampler,
    )
    return Online(
        prompts,
        around(sample),
        scorer,
        _Prepare(policy, algorithm, options, settings),
        policy.kernel(sampler["eta"]),
        k=rollout.k,
        prompts_per_round=rollout.prompts_per_round,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        inner_epochs=rollout.inner_epochs,
        rounds=rollout.rounds,
        seed=settings.seed,
        on_round=reference.begin_round if reference else None,
        context=partial(optimisation.autocast, settings, policy.device),
        device=policy.device,
        processes=join(policy.device),
    )


class _Prepare:
    """The algorithm's `prepare`, and a look at the first round: a fresh rollout's probability ratio must be 1."""

    def __init__(self, policy: DiffusionPolicy, algorithm: Any, options: Any, settings: TrainingSettings) -> None:
        self._policy, self._algorithm, self._options, self._settings = policy, algorithm, options, settings
        self._looked = False

    def __call__(self, rollout: Rollout, feedback: Mapping[str, torch.Tensor], state: State) -> TransitionBatch:
        batch: TransitionBatch = self._algorithm.prepare(rollout, feedback, state, self._options)
        if len(batch) and not self._looked:
            self._looked = True
            check_ratio(self._policy, batch, self._options, self._settings)
        return batch


@torch.no_grad()
def check_ratio(
    policy: DiffusionPolicy, batch: TransitionBatch, options: Any, settings: TrainingSettings, rows: int = 16
) -> float:
    """The largest |log ratio| of some of a fresh rollout's transitions, recomputed as training will compute them, no
    more of them at once.

    Raises TrainingError above 1e-5 in float32, or above a tenth of the algorithm's clip in lower precision: what trains
    is then not what sampled.
    """
    looked_at = torch.arange(0, len(batch), max(1, len(batch) // rows))
    ratios = []
    for index in looked_at.split(settings.micro_batch_size or settings.batch_size):
        some = to_device(select(batch, index), policy.device)
        with optimisation.autocast(settings, policy.device):
            ratios.append((likelihood.transition(policy, some) - some.logps).abs().max())
    largest = float(torch.stack(ratios).max())
    exact = settings.mixed_precision == "no" and next(policy.module.parameters()).dtype == torch.float32
    clip = getattr(options, "clip_range", None) or getattr(options, "clip", None) or 0.1
    limit = 1e-5 if exact else 0.1 * clip
    if not largest <= limit:
        raise TrainingError(
            f"a fresh rollout's log ratio is {largest:.2g} and may be {limit:.2g} at most: training would not see what "
            "was sampled; use float32 (training.mixed_precision: no, model.dtype: float32)"
        )
    return largest


def fit(
    policy: DiffusionPolicy,
    algorithm: Any,
    options: Any,
    source: Source,
    settings: TrainingSettings,
    folder: str | Path,
    *,
    reference: adapters.Reference | None,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    **trainer: Any,
) -> Result:
    """Trains, or goes on training; the tuned weights are in the policy afterwards, and exported in the folder."""
    return Trainer(
        policy,
        algorithm,
        options,
        source,
        settings,
        folder,
        reference=reference,
        evaluate=evaluate,
        **trainer,
    ).run()


def trained_on(source: Offline | Online) -> dict[str, Any]:
    """How much there was to train on, and a digest of it: of the prompts and, of stored preferences, all they say."""
    content = hashlib.sha256(json.dumps(list(source.prompts)).encode())
    made_of = source.state()["made_of"]
    if isinstance(made_of, Mapping):
        content.update(made_of["facts"].numpy().tobytes())
        return {"rows": len(source.prompts), "prompts": len(set(source.prompts)), "sha256": content.hexdigest()}
    return {"prompts": len(source.prompts), "sha256": content.hexdigest()}


def know_reference(
    policy: DiffusionPolicy, algorithm: Any, options: Any, source: Offline, settings: TrainingSettings, folder: Path
) -> None:
    """Asks the reference about all draws of the source before it is trained, so that none is needed any more.

    Without an adapter the policy is its reference until then: no copy of its weights is made.
    """
    adapted = _reference_kind(algorithm, options) == "base" and adapters.has_adapter(policy)
    known.precompute(policy, adapters.Reference(policy) if adapted else policy, source, settings, folder)


def reference_for(policy: DiffusionPolicy, algorithm: Any, options: Any) -> adapters.Reference | None:
    """What the options or the algorithm ask for: `base`, `round:<n>`, ... or None where no pass is needed."""
    return adapters.reference_of(policy, _reference_kind(algorithm, options))


def _reference_kind(algorithm: Any, options: Any) -> str:
    kind: str = getattr(options, "reference", algorithm.NEEDS.reference)
    return "base" if kind == "frozen" else kind
