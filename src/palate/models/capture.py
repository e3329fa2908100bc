"""A pipeline's way of calling its denoiser: learned from values alone, proven, or refused.

The pipeline's own `__call__` is run and listened to, with the path's scheduler in place, for two batch sizes, with
guidance off and on. `explain.py` makes recipes of these runs; here they must survive a proof on other prompts, other
noise and other times, and on the folder's own solver. What does not is refused. Nothing is trained through a guess.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from palate.models.contracts import Condition
from palate.models.explain import Run, Unlearned, learn_guided, learn_single, predictions_per_step
from palate.models.probe import Pass, call_parameters, denoisers, gathered, leaves, rebuild, record
from palate.models.replay import Recipe
from palate.models.schedules import Schedule

ROUNDING = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of a prediction, in another batch
OTHER_KERNELS = 1e-2  # likewise, off the CPU: a float32 convolution of another batch may be computed in TF32
GUIDANCE, OTHER_GUIDANCE = 3.7, 2.3  # while probing and proving: not values at which two formulas agree
# Of one length in any tokenizer, so that conditions stack even where they are not padded.
PROMPTS = ("a red fish", "a red bird", "a red boat")
OTHERS = ("a big bird", "a big fish", "a big boat")
REMEDY = "It cannot be trained on: use a pipeline of diffusers' own, or report this one"


class UnsupportedPipeline(ValueError):
    """A pipeline whose predictions cannot be recomputed outside its own call."""

    def __init__(self, pipeline: Any, difference: str, remedy: str = ""):
        super().__init__(f"{type(pipeline).__name__}: {difference}" + (f". {remedy}" if remedy else ""))


@dataclass(frozen=True)
class Dialect:
    """How a pipeline's call is asked for guidance: `off` turns it off, `on(scale, n)` on for n prompts."""

    off: Mapping[str, Any]
    scale: str | None = None  # the argument that holds the scale
    negative: bool = False  # whether it also needs a negative prompt

    def settings(self, scale: float | None, n: int) -> dict[str, Any]:
        if scale is None:
            return dict(self.off)
        assert self.scale is not None
        return {self.scale: scale} | ({"negative_prompt": [""] * n} if self.negative else {})


class Capture:
    """A pipeline whose denoiser calls are learned: `single` and, if its guidance could be learned, `guided`.

    schedule: how its path is walked. call: arguments of every call of the pipeline.
    Raises UnsupportedPipeline if the prediction without guidance cannot be replayed.
    """

    def __init__(self, pipeline: Any, schedule: Schedule, call: Mapping[str, Any]):
        self.pipeline, self.schedule, self.total = pipeline, schedule, schedule.total
        known = call_parameters(pipeline)
        if unknown := sorted(set(call) - set(known)):
            raise ValueError(f"{type(pipeline).__name__} takes no argument {', '.join(map(repr, unknown))}; it takes "
                             f"{', '.join(known)}")  # fmt: skip
        self.call = {**call, **({"output_type": "latent"} if "output_type" in known else {})}
        self.guided: Recipe | None = None
        self.dialect = Dialect({})
        self.unguided_reason = ""
        try:
            self.single, two = self._learn_off(known)
        except Unlearned as reason:
            raise UnsupportedPipeline(pipeline, str(reason), REMEDY) from None
        self.latent_shape = tuple(two.steps[0].sample.shape[1:])
        self.output_template = gathered(two.steps[0].passes[0].output, self.single.lists)
        try:
            self.guided = self._learn_on(known)
        except Unlearned as reason:
            self._give_up_guidance(str(reason))

    @property
    def modules(self) -> dict[str, Any]:
        return denoisers(self.pipeline)

    def run(self, prompts: Sequence[str], scale: float | None, *, seed: int, steps: int) -> Run:
        """All steps of the pipeline's own call, with guidance at `scale` or off (None)."""
        settings = self.call | self.dialect.settings(scale, len(prompts)) | {"num_inference_steps": steps}
        trace = record(self.pipeline, self.schedule.scheduler(), prompts, seed=seed, steps=steps, **settings)
        if not trace.steps:
            raise Unlearned("its call never steps its scheduler")
        times = self.schedule.times(trace.scheduler)[: len(trace.steps)]
        return Run(len(prompts), trace.steps, list(self.schedule.timestep(times)))

    def _learn_off(self, known: Mapping[str, Any]) -> tuple[Recipe, Run]:
        choices: list[dict[str, Any]] = [{}]
        if "guidance_scale" in known:
            choices += [{"guidance_scale": 1.0}, {"guidance_scale": 0.0}]
        for off in choices:
            self.dialect = Dialect(off)
            two = self.run(PROMPTS[:2], None, seed=1, steps=3)
            if two.steps and predictions_per_step(two) == 1:
                return learn_single(two, self.run(PROMPTS, None, seed=9, steps=2), self.total), two
        raise Unlearned("guidance cannot be turned off: two predictions are made at guidance_scale 1 and 0")

    def _learn_on(self, known: Mapping[str, Any]) -> Recipe:
        off = self.dialect.off
        names = [name for name in ("guidance_scale", "true_cfg_scale") if name in known]
        for negative in (False, True) if "negative_prompt" in known else (False,):
            for name in names:
                self.dialect = Dialect(off, name, negative)
                two = self.run(PROMPTS[:2], GUIDANCE, seed=3, steps=3)
                if predictions_per_step(two) > 1:
                    three = self.run(PROMPTS, GUIDANCE, seed=5, steps=2)
                    return learn_guided(self.single, two, three, self.total, GUIDANCE)
        self.dialect = Dialect(off)
        raise Unlearned("it has no guidance by two predictions")

    # --- conditioning ---

    def condition(self, prompt: str, *, guided: bool) -> Condition:
        """One prompt's conditioning, [1, ...] per entry, with the denoiser stubbed."""
        recipe = self.recipe(guided)
        settings = self.call | self.dialect.settings(GUIDANCE if guided else None, 1) | {"num_inference_steps": 4}
        trace = record(self.pipeline, self.schedule.scheduler(), [prompt], seed=0, steps=1, stub=self.stub, **settings)
        return recipe.condition(trace.steps[0].passes)

    def recipe(self, guided: bool) -> Recipe:
        if guided and self.guided is None:
            raise UnsupportedPipeline(self.pipeline, f"guidance cannot be replayed: {self.unguided_reason}",
                                      "Sample and train with guidance off (guidance_scale: null)")  # fmt: skip
        return self.guided if guided and self.guided is not None else self.single

    def stub(self, asked: Pass) -> Any:
        """Zeros of the shape the denoiser would return."""
        slot = self.single.slots[0]
        rows = len(dict(leaves(gathered(asked.arguments, slot.lists)))[next(iter(slot.latents))])

        def zeros(path: str, value: Any) -> Any:
            blank = value.new_zeros(rows, *value.shape[1:]) if isinstance(value, Tensor) else value
            return list(blank) if path in self.single.lists else blank

        return rebuild(self.output_template, zeros)

    # --- proof ---

    def prove(self, tolerance: float = 0.0) -> None:
        """Hold the replay against the pipeline on other prompts, noise and times, and on its folder's own solver.

        Raises UnsupportedPipeline where they differ by more than the tolerance (0: bit for bit) without guidance; with
        guidance, that alone is given up. Conditions are captured one by one and stacked. Rows in another order or
        number are held to rounding only: vectorised code treats the last elements of a tensor in another way, whatever
        row they belong to.
        """
        try:
            self._prove(None, tolerance)
        except Unlearned as reason:
            raise UnsupportedPipeline(self.pipeline, str(reason), REMEDY) from None
        if self.guided is not None:
            try:
                self._prove(OTHER_GUIDANCE, tolerance)
            except Unlearned as reason:
                self._give_up_guidance(str(reason))

    def _prove(self, scale: float | None, tolerance: float) -> None:
        run = self.run(OTHERS, scale, seed=21, steps=4)
        try:
            cond = Condition.cat([self.condition(prompt, guided=scale is not None) for prompt in OTHERS])
        except ValueError as error:
            raise Unlearned(f"the conditions of prompts of one length do not stack ({error})") from None
        self._hold(run, cond, scale, tolerance)
        rounding = max(ROUNDING.get(run.steps[0].model_output.dtype, 0.1), OTHER_KERNELS if tolerance else 0.0)
        for order in ([2, 0, 1], [1]):
            self._hold(run.rows(order), cond[order], scale, max(tolerance, rounding))
        if scale is not None and len(self.recipe(True).slots) == 2:
            self._try_batched(run, cond, tolerance)
        self._prove_own(cond, scale, tolerance)

    def _hold(self, run: Run, cond: Condition, scale: float | None, tolerance: float) -> None:
        """Replay a run. Differences are relative to the pipeline's prediction where that exceeds 1."""
        recipe = self.recipe(scale is not None)
        for step, timestep in zip(run.steps, run.timesteps, strict=True):
            own, times = step.model_output.float(), timestep.to(step.sample.device).expand(run.n)
            at = f"at timestep {float(timestep):g}, guidance {'off' if scale is None else scale}"
            if not bool(torch.isfinite(own).all()):
                raise Unlearned(f"its own predictions are not finite {at}: is the dtype too narrow for it?")
            try:
                with torch.no_grad():
                    replayed = recipe(self.modules, step.sample, times, cond, scale).float()
            except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise Unlearned(f"its denoiser cannot be called outside its own call {at} ({reason})") from error
            worst = float(((replayed - own).abs() / own.abs().clamp(min=1)).max())
            if not worst <= tolerance:
                raise Unlearned(f"a replayed prediction differs from the pipeline's own by {worst:.3g} {at}: it keeps "
                                "a state between steps, or alters predictions in a way that was not found")  # fmt: skip

    def _give_up_guidance(self, reason: str) -> None:
        self.guided, self.unguided_reason = None, reason
        self.dialect = Dialect(self.dialect.off)

    def _try_batched(self, run: Run, cond: Condition, tolerance: float) -> None:
        """Make both guidance branches in one pass if that is the same."""
        assert self.guided is not None
        two_passes, self.guided = self.guided, replace(self.guided, batched=True)
        try:
            self._hold(run, cond, OTHER_GUIDANCE, tolerance)
        except Unlearned:
            self.guided = two_passes

    def _prove_own(self, cond: Condition, scale: float | None, tolerance: float) -> None:
        """The same with the folder's own solver: its scaled model input is x in the path's coordinates."""
        own = copy.deepcopy(self.pipeline.scheduler)
        if type(own) is type(self.schedule.scheduler()):
            return
        settings = self.call | self.dialect.settings(scale, len(OTHERS)) | {"num_inference_steps": 4}
        trace = record(self.pipeline, own, OTHERS, seed=4, steps=4, **settings)
        steps = [step for step in trace.steps if step.passes]
        times = [torch.as_tensor(step.timestep) for step in steps]
        walked = trace.scheduler
        scaled = [replace(s, sample=scale_input(walked, s.sample, t)) for s, t in zip(steps, times, strict=True)]
        self._hold(Run(len(OTHERS), scaled, times), cond, scale, tolerance)


def scale_input(scheduler: Any, sample: Tensor, timestep: Tensor) -> Tensor:
    """`scale_model_input` as at that timestep of a walked scheduler."""
    if not hasattr(scheduler, "scale_model_input"):
        return sample
    fresh = copy.deepcopy(scheduler)
    for counter in ("_step_index", "_begin_index"):  # so that it looks the timestep up
        if hasattr(fresh, counter):
            setattr(fresh, counter, None)
    return fresh.scale_model_input(sample, timestep)
