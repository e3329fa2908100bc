"""Any diffusers pipeline as a `Denoiser`: nothing of it is re-implemented, its own `__call__` is listened to.

    policy = DiffusionPolicy.load("world:shapes")                    # or a folder, or a hub id
    cond = policy.condition(["a red circle on white"], guided=True)
    prediction = policy.predict(x_t, t, cond, guidance_scale=3.0)    # what the pipeline would hand its scheduler
    media, record = policy.generate(prompts, generators, num_inference_steps=20, guidance_scale=3.0, eta=1.0)

Shapes: n or N rows; latents [N, ...] in the path's coordinates, that is, what `scheduler.step` steps from; t [N] in the
path's clock. Predictions are float32 whatever the module computes in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palate import kinds
from palate.models import hub, rates
from palate.models.capture import PROMPTS, Capture, UnsupportedPipeline
from palate.models.codecs import Codec, autoencoder, find_codec, media_of
from palate.models.contracts import Condition, Kernel, Media
from palate.models.dialect import GUIDER
from palate.models.embeds import Memo, encoder_of, memoised_encoding, size_of
from palate.models.forms import Moment
from palate.models.kinds import check_prediction_kind, prediction_kind_errors
from palate.models.loading import absent_components, call_defaults, channels_last, quietly, resolve_model, sparingly
from palate.models.probe import Pass, Stepped, call, call_parameters, listening, override_step, swapped
from palate.models.proof import prove
from palate.models.residency import Residency
from palate.models.schedules import schedule_of
from palate.models.stochastic import Record, Tape, joined, recording

__all__ = [
    "DiffusionPolicy",
    "UnsupportedPipeline",
    "check_prediction_kind",
    "prediction_kind_errors",
    "resolve_model",
]

# How far a replayed prediction may lie from the pipeline's own, as a share of it where that exceeds 1. A processor
# computes the same bits again; an accelerator may choose another kernel, which rounds in another way.
TOLERANCE, HALF_TOLERANCE = 1e-3, 2e-2


class DiffusionPolicy:
    """A pipeline whose denoiser can be asked for predictions outside its own call. Implements `Denoiser`.

    pipeline: the diffusers pipeline, in eval mode, nothing trainable. path: the noise path it was trained on.
    modules: its denoisers by the pipeline's names for them (one; or two experts), and module: the first. latent_shape:
    of one row. frame_rate, sample_rate: a second, of its videos and sounds.
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
        self.pipeline, self.call = pipeline, rates.without_rate(pipeline, call or {})
        self.frame_rate, self.sample_rate = rates.frame_rate(pipeline, call or {}), rates.sample_rate(pipeline)
        try:
            self.schedule = schedule_of(pipeline.scheduler)
        except ValueError as error:
            raise UnsupportedPipeline(pipeline, str(error)) from None
        self.path = self.schedule.path
        self._embeds, self._conditions = Memo(), Memo()
        self._encode = memoised_encoding(pipeline, self._embeds)
        self.residency = Residency(pipeline)
        self.captures: dict[tuple[int, ...], Capture] = {}  # by the shape of a row, of other sizes too
        self._listen()
        self.modules: dict[str, nn.Module] = {name: getattr(pipeline, name) for name in self.capture.single.names}

    def _listen(self) -> None:
        """Learns how the pipeline calls its denoiser with this policy's arguments, and proves it."""
        pipeline = self.pipeline
        with self.residency.visit(), self._encoding():
            self.capture = Capture(pipeline, self.schedule, self.call)
            prove(self.capture, tolerance_of(self.device.type, pipeline.dtype))
        self.schedule = self.capture.schedule
        self.latent_shape = self.capture.latent_shape
        self.captures[tuple(self.latent_shape)] = self.capture
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
        prepare: Callable[[Any], Collection[str] | None] | None = None,
    ) -> DiffusionPolicy:
        """A hub id, a local folder, or `world:<name>`. Never runs code of the model's own; safetensors only.

        call: arguments of every call of the pipeline, over those a world's model is used with.
        prepare(pipeline): what is done to it before it is listened to, such as loading a LoRA; it may return the
            names of parts that are then no longer as their files have them.

        Raises FileNotFoundError for a folder that is not there or not a pipeline's, naming it and the mend.
        """
        source = resolve_model(model)
        local_files_only = local_files_only or Path(source).is_dir() or not hub.reached(source)
        try:
            with quietly():
                from diffusers import DiffusionPipeline

                index = DiffusionPipeline.load_config(source, local_files_only=local_files_only)
                pipeline = DiffusionPipeline.from_pretrained(
                    source,
                    dtype=dtype,
                    use_safetensors=True,
                    local_files_only=local_files_only,
                    **absent_components(index),
                )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FileNotFoundError(
                f"{model}: cannot be read as a diffusers pipeline ({reason}); "
                "give a folder written by `save_pretrained` with safetensors, or a hub id that can be reached"
            ) from error
        sparingly()
        altered = prepare(pipeline) if prepare is not None else None
        policy = cls(channels_last(pipeline.to(device)), call={**call_defaults(model), **(call or {})})
        policy.residency.source, policy.residency.altered = source, frozenset(altered or ())
        return policy

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
        scale, guided = self.capture.dialect.scale, None
        if scale == GUIDER:
            guided = float(self.pipeline.guider.guidance_scale)
        elif scale is not None and self.capture.dialect.off:  # else a call without arguments is without guidance
            guided = known[scale].default
        return {"num_inference_steps": known["num_inference_steps"].default, "guidance_scale": guided}

    def at(self, **size: int) -> DiffusionPolicy:
        """The same policy drawing another `height` and `width`, over the same weights; this one then predicts at both.

        Raises UnsupportedPipeline if predictions there cannot be replayed, ValueError for a size the call refuses.
        """
        other = copy.copy(self)
        other.call = {**self.call, **size}
        other._listen()
        return other

    def with_module(self, module: nn.Module) -> DiffusionPolicy:
        """The same policy over another module of the same architecture: a frozen copy, or a wrapped one."""
        return self.with_modules({next(iter(self.modules)): module})

    def with_modules(self, modules: Mapping[str, nn.Module]) -> DiffusionPolicy:
        """The same policy over other modules, by name; those not named stay."""
        other = copy.copy(self)
        other.modules = {**self.modules, **modules}
        return other

    def kernel(self, eta: float) -> Kernel:
        """The transitions `generate` samples with: DDIM's eta, or a flow model's noise level."""
        return self.schedule.kernel(eta)

    # --- conditioning and prediction ---

    def condition(self, prompts: Sequence[str], *, guided: bool = False) -> Condition:
        """Conditioning of B prompts, rows in order; `guided` adds the unconditional branch. Memoised per prompt."""
        place, drawn = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}, repr(self.call)
        with self.residency.visit(), self._encoding():
            kept = [self._conditions.get((p, guided, drawn), partial(self._capture, p, guided), _size) for p in place]
        first, key = kept[0]
        if any(other != key for _, other in kept[1:]):
            return Condition.cat([kept[place[prompt]][0] for prompt in prompts])
        stacked = replace(first, rows={name: torch.cat([cond.rows[name] for cond, _ in kept]) for name in first.rows})
        return stacked if len(place) == len(prompts) else stacked[[place[prompt] for prompt in prompts]]

    def settle(self, prompts: Sequence[str], *, guided: bool = False) -> None:
        """All but the denoiser leave; of the prompts met so far only the embeddings of these are kept."""
        self._embeds.clear()
        self._conditions.clear()
        for prompt in prompts:
            self.condition([prompt], guided=guided)
        self.condition([PROMPTS[0]])  # with which latents are decoded
        self._conditions.clear()
        self.residency.leave(readable=self._encode is not None)

    @cached_property
    def pads(self) -> bool:
        """Whether prompts of any lengths have conditions that stack."""
        return self.condition(["a"]).key == self.condition([PROMPTS[0]]).key

    def _capture(self, prompt: str, guided: bool) -> tuple[Condition, tuple[Any, ...]]:
        """One prompt's condition and its key, which takes longer to make than to compare."""
        cond = self.capture.condition(prompt, guided=guided)
        return cond, cond.key

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float | None = None) -> Tensor:
        """The prediction [N, ...] of `path.kind`, fp32, at x_t [N, ...], t [N]; None is guidance off."""
        recipe = self.captures.get(tuple(x_t.shape[1:]), self.capture).recipe(guidance_scale is not None)
        if guidance_scale is not None and not cond.guided:
            raise ValueError("guidance_scale needs conditions of `condition(prompts, guided=True)`")
        t = t if t.dim() else t.expand(len(x_t))
        at = Moment(self.schedule.timestep(t), t)
        return recipe(self._all_modules(), x_t, at, cond, guidance_scale).float()

    def _all_modules(self) -> Mapping[str, nn.Module]:
        """The trained denoisers, and the others that take part in a prediction."""
        return {**self.capture.modules, **self.modules}

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
        recipe = self.capture.recipe(guidance_scale is not None)
        if guidance_scale is None:
            self.capture.check_off()
        steps = list(step_generators or generators)
        rows = [slice(i, i + 1) for i in range(len(prompts))] if recipe.singly else [slice(0, len(prompts))]
        made = [
            self._generate(prompts[row], generators[row], steps[row], num_inference_steps, guidance_scale, eta)
            for row in rows
        ]
        return [medium for media, _ in made for medium in media], joined([record for _, record in made])

    def _generate(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        step_generators: Sequence[torch.Generator],
        num_inference_steps: int,
        guidance_scale: float | None,
        eta: float,
    ) -> tuple[list[Media], Record]:
        guided, heard = guidance_scale is not None, list[Pass]()
        recipe = self.capture.recipe(guided)
        tape = Tape(self.kernel(eta), step_generators, eta == 0, self.schedule.times, self.capture.sign)
        settings = self.capture.settings(guidance_scale, len(prompts)) | self.output_type
        settings |= {"num_inference_steps": num_inference_steps}
        scheduler = recording(self.schedule.scheduler(), tape)

        def listen(asked: Pass) -> None:
            if len(heard) < len(recipe.slots):
                heard.append(asked.kept())

        with self._in_place(scheduler, guidance_scale), listening(self.pipeline, listen):
            media = call(self.pipeline, self.capture.asked(prompts), generators, **(self.call | settings))
        cond = self.capture.condition_of(recipe, heard, guided)
        if cond.rows and len(cond) != len(prompts):
            raise ValueError(
                f"{type(self.pipeline).__name__} ran {len(prompts)} prompts as {len(cond)} guided rows: at a guidance "
                f"scale of {guidance_scale:g} it does not guide; pass None for no guidance"
            )
        x, logps = torch.stack(tape.x, dim=1), torch.stack(tape.logps, dim=1)
        std = torch.tensor(tape.std, device=x.device)
        return self._rated(media), Record(x, tape.t, logps, std, cond, tape.kernel, guidance_scale)

    @cached_property
    def output_type(self) -> dict[str, Any]:
        """The argument that asks for media: pictures and frames as PIL; sound as the pipeline gives it."""
        known = call_parameters(self.pipeline)
        if "output_type" not in known:
            return {}
        pictures = hasattr(self.pipeline, "image_processor") or hasattr(self.pipeline, "video_processor")
        return {"output_type": "pil" if pictures else known["output_type"].default}

    # --- media ---

    def decode(self, x0: Tensor) -> list[Media]:
        """Media of x0 [n, ...], by the pipeline's own code: steps that arrive at x0."""
        if self.capture.singly and len(x0) > 1:
            return [medium for row in x0.split(1) for medium in self.decode(row)]
        return self._rated(self._arrive(x0))

    def _rated(self, output: Any) -> list[Media]:
        """The media of a pipeline's output, videos and sounds with their rates."""
        return [kinds.rated(medium, self.frame_rate, self.sample_rate) for medium in media_of(output)]

    def _arrive(self, x0: Tensor, *, as_it_is: bool = False) -> Any:
        """The output of the pipeline's call for x0 [n, ...], in the denoiser's precision or `as_it_is`."""

        def arrive(_: Any, model_output: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
            there = x0 if len(model_output) == len(x0) else x0.flatten(0, 1)  # frames as rows
            there = there.to(model_output.device) if as_it_is else there.to(model_output)
            return Stepped(there) if return_dict else (there, there)

        settings = self.capture.settings(None, len(x0)) | self.output_type | {"num_inference_steps": 4}
        scheduler = override_step(self.schedule.scheduler(), arrive)
        generators = [torch.Generator(self.device).manual_seed(0) for _ in range(len(x0))]
        with self._in_place(scheduler, None), listening(self.pipeline, lambda _: None, self.capture.stub):
            prompts = self.capture.asked([PROMPTS[0]] * len(x0))
            return call(self.pipeline, prompts, generators, **(self.call | settings))

    @property
    def autoencoder(self) -> nn.Module:
        """What makes media of latents. Raises ValueError for a pipeline without one."""
        name = autoencoder(self.pipeline)
        if name is None:
            raise ValueError(f"{type(self.pipeline).__name__} has no autoencoder")
        module: nn.Module = getattr(self.pipeline, name)
        return module

    def encode(self, media: Sequence[Media]) -> Tensor:
        """x0 [n, ...] of media, the mode of the autoencoder's posterior. Raises ValueError if it cannot be undone."""
        if self._codec is None:
            self._codec = find_codec(
                self.pipeline, partial(self._arrive, as_it_is=True), self.latent_shape, self.device
            )
        with self.residency.visit():
            return self._codec.encode(media).float()

    # --- what stands in the pipeline for the length of a call ---

    def _encoding(self) -> Any:
        return swapped(self.pipeline, **({} if self._encode is None else {encoder_of(self.pipeline): self._encode}))

    @contextmanager
    def _in_place(self, scheduler: Any, scale: float | None) -> Iterator[None]:
        modules = {name: unwrap(module) for name, module in self.modules.items()}
        with ExitStack() as stack:
            stack.enter_context(self.residency.visit())
            stack.enter_context(self._encoding())
            stack.enter_context(swapped(self.pipeline, scheduler=scheduler, **modules))
            stack.enter_context(self.capture.in_place(scale))
            yield


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


def _size(kept: tuple[Condition, Any]) -> int:
    return size_of(dict(kept[0].rows))
