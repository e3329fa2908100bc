"""The parts a run is put together from: a model, its prompts and scorers, preferences, sources, the loop.

Each is a function of its own, so that a script can take the ones it wants; `palate.run` strings them together.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from palate import likelihood, plugins, sampling
from palate.config import ConfigError, ModelSettings, RolloutSettings, TrainingSettings
from palate.datasets import parquet
from palate.media import DatasetError, MediaError, decode
from palate.models.contracts import Rollout, Scorer, State, TransitionBatch, select
from palate.models.diffusion import DiffusionPolicy, check_prediction_kind, resolve_model
from palate.records import Preference
from palate.training import adapters, optimisation
from palate.training.logs import Progress
from palate.training.offline import Offline
from palate.training.online import Online
from palate.training.processes import join
from palate.training.sources import Drawing, PreferenceRow, Source, to_device
from palate.training.trainer import Result, Trainer, TrainingError

WORLD = "world:"

# --- models, prompts, scorers -----------------------------------------------------------------------------------------


def world(name: str) -> Any:
    """The module of `world:<name>`. Raises PluginError, with the worlds there are, for another name."""
    return plugins.find("worlds", name.removeprefix(WORLD))


def pick_device(device: str = "auto") -> str:
    """The best there is for `auto`; under torchrun each process takes the card of its local rank."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def load_policy(settings: ModelSettings, seed: int = 0) -> DiffusionPolicy:
    """The model of a recipe with what is to be trained made trainable."""
    policy = DiffusionPolicy.load(
        settings.name, dtype=getattr(torch, settings.dtype), device=pick_device(settings.device)
    )
    if settings.lora is None:
        adapters.train_all(policy)
    else:
        adapters.add_lora(policy, settings.lora, seed=seed)
    return policy


def load_arm(model: str) -> DiffusionPolicy:
    """A model to look at: a hub id, a folder, `world:<name>`, or a run's folder (its base with its adapter)."""
    check_arm(model)
    run = Path(model)
    base = base_of(run)
    if base is None:
        return DiffusionPolicy.load(model, device=pick_device())
    if (run / "model").is_dir():
        return DiffusionPolicy.load(run / "model", device=pick_device())
    policy = DiffusionPolicy.load(base, device=pick_device())
    if callable(getattr(policy.pipeline, "load_lora_weights", None)):
        policy.pipeline.load_lora_weights(run / "adapter")
    else:
        module: Any = policy.module
        module.load_lora_adapter(run / "adapter")
    return policy


def check_arm(model: str) -> None:
    """Raises, without loading anything, for a model that is not there, or a run's folder that holds none yet."""
    run = Path(model)
    if base_of(run) is None:
        resolve_model(model)
    elif not (run / "model").is_dir() and not (run / "adapter").is_dir():
        raise ConfigError(f"{run} has no adapter/ yet: let its training finish by the command that began it")


def base_of(run: Path) -> str | None:
    """The model that a run's folder, or the demo's, began from; None if it is no run's folder."""
    held = run / "config.yaml"
    if not held.is_file():
        return None
    recipe = yaml.safe_load(held.read_text(encoding="utf-8"))
    try:
        return str(recipe["model"]["name"])
    except (KeyError, TypeError):
        raise ConfigError(f"{held} does not say which model the run began from: it is no run's folder") from None


def settings_of(model: str, policy: DiffusionPolicy, **wanted: Any) -> dict[str, Any]:
    """Sampling settings: what is asked for, else what the world ships, else the pipeline's own defaults.

    A guidance scale of exactly 1 is guidance off.
    """
    model = base_of(Path(model)) or model
    own = dict(policy.default_settings)
    if model.startswith(WORLD):
        own |= world(model).sampling_defaults()
    own |= {name: value for name, value in wanted.items() if value is not None}
    own.setdefault("eta", 0.0)
    return own | {"guidance_scale": sampling.guidance(own["guidance_scale"])}


def read_prompts(prompts: str | Path | Sequence[str], base: Path | None = None) -> list[str]:
    """Distinct prompts in order: a list, a text file with one a line, or `world:<name>[:train|:eval]`.

    base: another folder to look for the file in. Raises ConfigError naming the file, and the line that is no text.
    """
    if not isinstance(prompts, str | Path):
        found, source = list(prompts), "the list of prompts"
    elif str(prompts).startswith(WORLD):
        name, _, split = str(prompts).removeprefix(WORLD).partition(":")
        found, source = world(name).prompts(split or "train"), str(prompts)
    else:
        path = base / prompts if base and not Path(prompts).exists() else Path(prompts)
        if not path.is_file():
            raise ConfigError(
                f"prompt file {prompts} does not exist: write one prompt a line into it, or mend the path"
            )
        found, source = _text(path).splitlines(), str(path)
    found = list(dict.fromkeys(prompt.strip() for prompt in found if prompt.strip()))
    if not found:
        raise ConfigError(f"{source} holds no prompts: write one a line")
    return found


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} line {line}: not UTF-8 text; save it as UTF-8") from None


@cache
def find_scorer(name: str) -> Scorer:
    """A scorer by its file's name, a dotted path, or `world:<name>`; loaded once, since some are large."""
    if name.startswith(WORLD):
        scorer: Scorer = world(name).scorer()
        return scorer
    found: Any = plugins.find("scorers", name)
    return found.load() if hasattr(found, "load") else found


def weighted(scorers: Mapping[str, float]) -> Weighted:
    """The scorers of a recipe, by name and weight, as one."""
    return Weighted(scorers)


class Weighted:
    """One scorer of several, each score times its weight.

    `{"jpeg_size": -1, "world:shapes/alignment": 1}`: behind a slash stands one dimension of a scorer that gives
    several. Each scorer is asked once.
    """

    def __init__(self, scorers: Mapping[str, float]) -> None:
        self._weights: dict[str, dict[str, float]] = {}
        for name, weight in scorers.items():
            whole, _, dimension = name.partition("/")
            self._weights.setdefault(whole, {})[dimension] = weight
        self._found = {name: find_scorer(name) for name in self._weights}

    def check(self, prompts: Sequence[str]) -> None:
        """Raises ConfigError for prompts or dimensions that a scorer is known not to judge: before any sampling."""
        for name, scorer in self._found.items():
            if given := getattr(scorer, "dimensions", ()):
                self._check_dimensions(name, given)
            try:
                getattr(scorer, "check", lambda _: None)(prompts)
            except ValueError as error:
                raise ConfigError(f"{name} cannot judge these prompts: {error}") from None

    def _check_dimensions(self, name: str, given: Collection[str]) -> None:
        unknown = sorted(set(self._weights[name]) - set(given) - {""})
        if unknown:
            raise ConfigError(f"{name} gives no score {unknown[0]!r}; it gives {', '.join(sorted(given))}")

    def __call__(self, prompts: Sequence[str], media: Sequence[Any]) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for name, weights in self._weights.items():
            scores = self._found[name](prompts, media)
            self._check_dimensions(name, scores.keys())
            for dimension, values in scores.items():
                weight = weights.get(dimension, weights.get(""))
                if weight is not None:
                    key = dimension if dimension not in out else f"{name}.{dimension}"
                    out[key] = weight * np.asarray(values, float)
        return out


# --- preferences to train on ------------------------------------------------------------------------------------------


def encode(
    policy: DiffusionPolicy, rows: Sequence[tuple[Preference, Sequence[Any]]], batch_size: int = 8
) -> list[PreferenceRow]:
    """Preferences with their decoded media, as latents and conditions. A medium that is None is masked."""
    encoded = []
    bar = Progress(len(rows), 0, shown=join(policy.device).first, what="encoded")
    with contextlib.closing(bar):
        for row, media in rows:
            encoded.append(_encoded(policy, row, media, batch_size))
            bar.advance(1)
    return encoded


def _encoded(policy: DiffusionPolicy, row: Preference, media: Sequence[Any], batch_size: int) -> PreferenceRow:
    there = [medium for medium in media if medium is not None]
    latents = torch.cat([policy.encode(there[i : i + batch_size]) for i in range(0, len(there), batch_size)]).cpu()
    if latents.shape[1:] != policy.latent_shape:
        sizes = sorted({medium.size for medium in there})
        raise ConfigError(
            f"{row.where or row.id}: pictures of {sizes} give latents {tuple(latents.shape[1:])}, but the model "
            f"draws {tuple(policy.latent_shape)}: bring all pictures to the size the model draws"
        )
    x0 = torch.zeros(len(media), *latents.shape[1:])
    mask = torch.tensor([medium is not None for medium in media])
    x0[mask] = latents
    finite = x0.flatten(1).isfinite().all(1)
    x0[~finite] = 0
    return PreferenceRow(
        id=row.id,
        prompt=row.prompt,
        x0=x0,
        cond=policy.condition([row.prompt]).to("cpu"),
        prefer=torch.tensor(row.prefer),
        votes=torch.tensor(row.votes) if row.votes else torch.ones(len(media), len(media)),
        scores=torch.tensor(row.scores) if row.scores else torch.full((len(media), 0), torch.nan),
        mask=mask & finite,
        weight=row.weight,
    )


def read_preferences(folder: str | Path, max_bad_fraction: float) -> list[tuple[Preference, list[Any]]]:
    """Rows and their pictures. Raises DatasetError, naming the first, if more than that share cannot be read."""
    checked = parquet.validate(folder, max_bad_fraction)
    if not checked.ok:
        bad = [f"{where}: {reason}" for where, reason in (*checked.bad_rows, *checked.bad_media)]
        found = [*checked.problems, *bad]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        mend = "mend or remove them, or allow more by data.max_bad_fraction"
        raise DatasetError(f"{folder}: {found[0] if found else checked}{more}; {mend}")
    rows = []
    for row in parquet.read(folder):
        pictures = []
        for medium, exists in zip(row.media, row.mask, strict=True):
            try:
                pictures.append(decode(medium, folder) if medium is not None and exists else None)
            except MediaError:
                pictures.append(None)  # counted by validate, within the stated share
        if any(picture is not None for picture in pictures):
            rows.append((row, pictures))
    return rows


def check_kind(policy: DiffusionPolicy, rows: Sequence[tuple[Preference, Sequence[Any]]], n: int = 16) -> None:
    """Refuses a model whose stated kind of prediction is not the one it was trained for, judged on some pictures."""
    shown = [(medium, row.prompt) for row, media in rows for medium in media if medium is not None][:n]
    check_prediction_kind(policy, [medium for medium, _ in shown], [prompt for _, prompt in shown])


# --- training ---------------------------------------------------------------------------------------------------------


def offline_source(
    policy: DiffusionPolicy, rows: Sequence[PreferenceRow], options: Any, settings: TrainingSettings, held_out: float
) -> Offline:
    """Rows shuffled by the seed, a share of the prompts kept aside for validation.

    Raises ConfigError if prompts are to be emptied at times and the empty prompt's condition is of another length.
    """
    null, drop = policy.condition([""]), getattr(options, "prompt_dropout", 0.0)
    odd = next((row for row in rows if row.cond.key != null.to("cpu").key), None) if drop else None
    if odd is not None:
        raise ConfigError(
            f"this model does not pad prompts, so that the empty one cannot stand in for {odd.prompt!r}: "
            "set algorithm.prompt_dropout to 0"
        )
    return Offline(
        rows,
        null,
        Drawing(settings.seed, policy.path, drop),
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        held_out_share=held_out,
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
) -> Online:
    """Rounds of the policy's own samples, scored and prepared by the algorithm."""
    sample = partial(
        sampling.rollout,
        policy,
        batch_size=rollout.batch_size,
        shared_noise=getattr(options, "shared_noise", False),
        **sampler,
    )
    return Online(
        prompts,
        sample,
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
        starts_at_reference=getattr(options, "loss", "sigmoid") == "sigmoid",
        **trainer,
    ).run()


def reference_for(policy: DiffusionPolicy, algorithm: Any, options: Any) -> adapters.Reference | None:
    """What the options or the algorithm ask for: `base`, `round:<n>`, ... or None where no pass is needed."""
    kind = getattr(options, "reference", algorithm.NEEDS.reference)
    return adapters.reference_of(policy, "base" if kind == "frozen" else kind)
