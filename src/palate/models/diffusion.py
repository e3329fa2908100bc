"""Any diffusers pipeline as a `Denoiser`: nothing of it is re-implemented, its own `__call__` is listened to.

    policy = DiffusionPolicy.load("world:shapes")                    # or a folder, or a hub id
    cond = policy.condition(["a red circle on white"], guided=True)
    prediction = policy.predict(x_t, t, cond, guidance_scale=3.0)    # what the pipeline would hand its scheduler
    media, record = policy.generate(prompts, generators, num_inference_steps=20, guidance_scale=3.0, eta=1.0)

Shapes: n or N rows; latents [N, ...] in the path's coordinates, that is, what `scheduler.step` steps from; t [N] in the
path's clock. Predictions are float32 whatever the module computes in.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from palate.models.capture import Capture, UnsupportedPipeline
from palate.models.codecs import Codec, find_codec
from palate.models.contracts import Condition, Kernel, Media, PredictionKind
from palate.models.embeds import Memo, memoised_encoding, size_of
from palate.models.probe import Pass, call, call_parameters, listening, override_step, swapped
from palate.models.replay import RaggedError, Recipe
from palate.models.schedules import schedule_of
from palate.models.stochastic import Record, Tape, recording
from palate.paths import target

__all__ = ["DiffusionPolicy", "UnsupportedPipeline", "check_prediction_kind", "resolve_model"]

# How far a replayed prediction may lie from the pipeline's own, as a share of it where that exceeds 1. A processor
# computes the same bits again; an accelerator may choose another kernel, which rounds in another way.
TOLERANCE, HALF_TOLERANCE = 1e-3, 2e-2


class DiffusionPolicy:
    """A pipeline whose denoiser can be asked for predictions outside its own call. Implements `Denoiser`.

    pipeline: the diffusers pipeline, in eval mode, nothing trainable. path: the noise path it was trained on.
    module: its denoiser, and modules: by the pipeline's name for it. latent_shape: of one row.
    default_settings: `num_inference_steps` and `guidance_scale` of the pipeline's own call.
    """

    def __init__(self, pipeline: Any, *, call: Mapping[str, Any] | None = None):
        """`call`: arguments of every call of the pipeline, such as height and width.

        Raises UnsupportedPipeline if its predictions cannot be replayed.
        """
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline, self.call = pipeline, dict(call or {})
        try:
            self.schedule = schedule_of(pipeline.scheduler)
        except ValueError as error:
            raise UnsupportedPipeline(pipeline, str(error)) from None
        self.path = self.schedule.path
        self._embeds, self._conditions = Memo(), Memo()
        self._encode = memoised_encoding(pipeline, self._embeds)
        with self._encoding():
            self.capture = Capture(pipeline, self.schedule, self.call)
            self.capture.prove(tolerance_of(self.device.type, pipeline.dtype))
        name = self.capture.single.slots[0].name
        self.modules: dict[str, nn.Module] = {name: getattr(pipeline, name)}
        self.latent_shape = self.capture.latent_shape
        self._codec: Codec | None = None

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        local_files_only: bool = False,
        call: Mapping[str, Any] | None = None,
        prepare: Callable[[Any], None] | None = None,
    ) -> DiffusionPolicy:
        """A hub id, a local folder, or `world:<name>`. Never runs code of the model's own; safetensors only.

        prepare(pipeline): what is done to it before it is listened to, such as loading a LoRA.

        Raises FileNotFoundError for a folder that is not there or not a pipeline's, naming it and the mend.
        """
        source = resolve_model(model)
        try:
            with _quietly():
                from diffusers import DiffusionPipeline

                pipeline = DiffusionPipeline.from_pretrained(
                    source, dtype=dtype, use_safetensors=True, local_files_only=local_files_only
                )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FileNotFoundError(
                f"{model}: cannot be read as a diffusers pipeline ({reason}); "
                "give a folder written by `save_pretrained` with safetensors, or a hub id that can be reached"
            ) from error
        if prepare is not None:
            prepare(pipeline)
        return cls(_channels_last(pipeline.to(device)), call=call)

    @property
    def module(self) -> nn.Module:
        return next(iter(self.modules.values()))

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipeline._execution_device)

    @property
    def default_settings(self) -> dict[str, Any]:
        """Of the pipeline's own call; `guidance_scale` None where that is off or cannot be replayed."""
        known = call_parameters(self.pipeline)
        scale = self.capture.dialect.scale
        off = scale is None or not self.capture.dialect.off  # a call without arguments is already without guidance
        return {
            "num_inference_steps": known["num_inference_steps"].default,
            "guidance_scale": None if off or scale is None else known[scale].default,
        }

    def with_module(self, module: nn.Module) -> DiffusionPolicy:
        """The same policy over another module of the same architecture: a frozen copy, or a wrapped one."""
        other = copy.copy(self)
        other.modules = {next(iter(self.modules)): module}
        return other

    def kernel(self, eta: float) -> Kernel:
        """The transitions `generate` samples with: DDIM's eta, or a flow model's noise level."""
        return self.schedule.kernel(eta)

    # --- conditioning and prediction ---

    def condition(self, prompts: Sequence[str], *, guided: bool = False) -> Condition:
        """Conditioning of B prompts, rows in order; `guided` adds the unconditional branch. Memoised per prompt.

        Raises ValueError if the prompts' conditions differ in length and so cannot be stacked.
        """
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        with self._encoding():
            kept = [self._conditions.get((p, guided), partial(self._capture, p, guided), _size) for p in place]
        first, key = kept[0]
        if any(other != key for _, other in kept[1:]):
            raise ValueError("conditions of different arguments or lengths cannot be stacked; group prompts by `key`")
        stacked = replace(first, rows={name: torch.cat([cond.rows[name] for cond, _ in kept]) for name in first.rows})
        return stacked if len(place) == len(prompts) else stacked[[place[prompt] for prompt in prompts]]

    def _capture(self, prompt: str, guided: bool) -> tuple[Condition, tuple[Any, ...]]:
        """One prompt's condition and its key, which takes longer to make than to compare."""
        cond = self.capture.condition(prompt, guided=guided)
        return cond, cond.key

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float | None = None) -> Tensor:
        """The prediction [N, ...] of `path.kind`, fp32, at x_t [N, ...], t [N]; None is guidance off."""
        recipe = self.capture.recipe(guidance_scale is not None)
        if guidance_scale is not None and not cond.guided:
            raise ValueError("guidance_scale needs conditions of `condition(prompts, guided=True)`")
        timestep = self.schedule.timestep(t if t.dim() else t.expand(len(x_t)))
        return recipe(self.modules, x_t, timestep, cond, guidance_scale).float()

    # --- sampling ---

    def generate(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        *,
        num_inference_steps: int,
        guidance_scale: float | None,
        eta: float,
        step_generators: Sequence[torch.Generator] | None = None,
    ) -> tuple[list[Media], Record]:
        """n samples by the pipeline's own call, and the record of how they came about.

        generators: one per prompt, from which a row draws all its noise; with step_generators only its first, x_T.
        eta: DDIM's eta or a flow model's noise level; 0 is the deterministic sampler, whose steps have no likelihood.
        """
        guided, heard = guidance_scale is not None, list[Pass]()
        recipe = self.capture.recipe(guided)
        tape = Tape(self.kernel(eta), step_generators or generators, eta == 0, self.schedule.times)
        settings = self.capture.dialect.settings(guidance_scale, len(prompts))
        settings |= {"num_inference_steps": num_inference_steps, "output_type": "pil"}
        scheduler = recording(self.schedule.scheduler(), tape)

        def listen(asked: Pass) -> None:
            if len(heard) < len(recipe.slots):
                heard.append(asked)

        with self._in_place(scheduler), listening(self.pipeline, listen):
            media = call(self.pipeline, prompts, generators, **(self.call | settings))
        cond = _stacked(recipe, heard)
        if cond is not None and cond.rows and len(cond) != len(prompts):
            raise ValueError(
                f"{type(self.pipeline).__name__} ran {len(prompts)} prompts as {len(cond)} guided rows: at a guidance "
                f"scale of {guidance_scale:g} it does not guide; pass None for no guidance"
            )
        x, logps = torch.stack(tape.x, dim=1), torch.stack(tape.logps, dim=1)
        std = torch.tensor(tape.std, device=x.device)
        return _media(media), Record(x, tape.t, logps, std, cond, tape.kernel, guidance_scale)

    # --- media ---

    def decode(self, x0: Tensor) -> list[Media]:
        """Media of x0 [n, ...], by the pipeline's own code: one step that arrives at x0."""

        def arrive(_: Any, model_output: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> tuple[Tensor]:
            return (x0.to(model_output),)

        settings = self.capture.dialect.settings(None, len(x0)) | {"num_inference_steps": 1, "output_type": "pil"}
        scheduler = override_step(self.schedule.scheduler(), arrive)
        generators = [torch.Generator(self.device).manual_seed(0) for _ in range(len(x0))]
        with self._in_place(scheduler), listening(self.pipeline, lambda _: None, self.capture.stub):
            return _media(call(self.pipeline, [""] * len(x0), generators, **(self.call | settings)))

    def encode(self, media: Sequence[Media]) -> Tensor:
        """x0 [n, ...] of media, the mode of the autoencoder's posterior. Raises ValueError if it cannot be undone."""
        if self._codec is None:
            self._codec = self._learn_codec()
        return self._codec.encode(media).float()

    def _learn_codec(self) -> Codec:
        x0 = torch.randn(1, *self.latent_shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        given: list[Tensor] = []
        decode = self.pipeline.vae.decode

        def listen(z: Tensor, *args: Any, **kwargs: Any) -> Any:
            given.append(z)
            return decode(z, *args, **kwargs)

        with swapped(self.pipeline.vae, decode=listen):
            self.decode(x0)
        return find_codec(self.pipeline, x0, given[0])

    # --- what stands in the pipeline for the length of a call ---

    def _encoding(self) -> Any:
        return swapped(self.pipeline, **({} if self._encode is None else {"encode_prompt": self._encode}))

    def _in_place(self, scheduler: Any) -> Any:
        encode = {} if self._encode is None else {"encode_prompt": self._encode}
        modules = {name: unwrap(module) for name, module in self.modules.items()}
        return swapped(self.pipeline, scheduler=scheduler, **modules, **encode)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside what distributes or compiles it."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return unwrap(module.module)
    return unwrap(module._orig_mod) if isinstance(module, torch._dynamo.OptimizedModule) else module


def tolerance_of(device: str, dtype: torch.dtype) -> float:
    """How far a replay may be from the pipeline on a type of device, computed in a dtype; 0 is bit for bit."""
    if device == "cpu":
        return 0.0
    return TOLERANCE if dtype in (torch.float32, torch.float64) else HALF_TOLERANCE


def _stacked(recipe: Recipe, heard: list[Pass]) -> Condition | None:
    """The conditions of a call's rows; None for rows of different lengths, which are pictures and no rollout."""
    try:
        return recipe.condition(heard)
    except RaggedError:
        return None


def _size(kept: tuple[Condition, Any]) -> int:
    return size_of(dict(kept[0].rows))


def _media(output: Any) -> list[Media]:
    """The media of a pipeline's output, whatever it calls them."""
    for name in ("images", "frames", "audios"):
        if hasattr(output, name):
            return list(getattr(output, name))
    return list(output[0])


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the libraries' own loading bars and notes on optional packages; errors still come through."""
    import transformers
    from diffusers.utils import logging as diffusers_logging

    libraries = (transformers.utils.logging, diffusers_logging)
    held = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, held, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar()


def _channels_last(pipeline: Any) -> Any:
    """Weights of two-dimensional convolutions in the layout that CPUs and GPUs compute them fastest in: on a CPU a
    step of training takes two thirds of the time. Values are the same; only their order in memory is not."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module) and any(isinstance(layer, nn.Conv2d) for layer in component.modules()):
            component.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return pipeline


def resolve_model(name: str | Path) -> str:
    """A folder or a hub id for a model's name; `world:<name>` is the model a world ships.

    Raises FileNotFoundError, naming the folder or world and the mend.
    """
    text = str(name)
    if text.startswith("world:"):
        world = text.removeprefix("world:")
        try:
            folder: Path = importlib.import_module(f"palate.worlds.{world}").weights_dir()
        except ModuleNotFoundError:
            raise FileNotFoundError(f"{text}: there is no such world; `world:shapes` is one") from None
        if not (folder / "model_index.json").exists():
            raise FileNotFoundError(f"{text}: its weights are not in {folder}; reinstall the package, or pretrain it")
        return str(folder)
    looks_local = isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1
    folder = Path(text).expanduser()
    parent = text.partition("/")[0]
    if folder.exists():
        if not (folder / "model_index.json").exists():
            raise FileNotFoundError(f"{folder}: has no model_index.json; give the folder `save_pretrained` wrote")
        return str(folder)
    if looks_local:
        raise FileNotFoundError(f"{folder}: no such folder; give a pipeline's folder, a hub id, or world:shapes")
    if Path(parent).is_dir():  # a slip in a local path must not go to the network
        raise FileNotFoundError(
            f"{folder}: no such folder in {parent}/; mend the path (or, if it is a hub id, call from another folder)"
        )
    return text


def check_prediction_kind(policy: Any, media: Sequence[Media], prompts: Sequence[str], *, seed: int = 0) -> None:
    """On a trained base, the stated kind of prediction must fit data best of all kinds. Raises ValueError if not.

    A config that says epsilon over weights trained for v makes noise of every sample, and training would go on.
    """
    errors = prediction_kind_errors(policy, media, prompts, seed=seed)
    best = min(errors, key=lambda kind: errors[kind])
    if best != policy.path.kind:
        listed = ", ".join(f"{kind} {error:.3g}" for kind, error in sorted(errors.items(), key=lambda e: e[1]))
        raise ValueError(
            f"the model's config says it predicts {policy.path.kind}, but its outputs on data are nearest to {best} "
            f"(mean squared errors: {listed}): correct prediction_type in scheduler/scheduler_config.json"
        )


@torch.no_grad()
def prediction_kind_errors(
    policy: Any, media: Sequence[Media], prompts: Sequence[str], *, seed: int = 0
) -> dict[PredictionKind, float]:
    """Mean squared error of the network's output against what each kind of prediction would have been."""
    generator = torch.Generator().manual_seed(seed)
    sums: dict[PredictionKind, float] = dict.fromkeys(get_args(PredictionKind), 0.0)
    for rows in _alike(policy, prompts):
        x0, cond = policy.encode([media[row] for row in rows]), policy.condition([prompts[row] for row in rows])
        for _ in range(8):
            noise = torch.randn(x0.shape, generator=generator).to(x0.device)
            t = policy.path.sample_t(len(x0), generator).to(x0.device)
            output = policy.predict(policy.path.add_noise(x0, noise, t), t, cond)
            for kind in sums:
                error = (output - target(policy.path, x0, noise, t, kind)).square().flatten(1).mean(1)
                sums[kind] += float(error.sum())
    return {kind: total / (8 * len(prompts)) for kind, total in sums.items()}


def _alike(policy: Any, prompts: Sequence[str], most: int = 4) -> Iterator[list[int]]:
    """Rows whose conditions stack, at most so many at a time: a look at a model must not need more memory than it."""
    groups: dict[Any, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(policy.condition([prompt]).key, []).append(row)
    for rows in groups.values():
        yield from (rows[start : start + most] for start in range(0, len(rows), most))
