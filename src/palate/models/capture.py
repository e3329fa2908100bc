"""A pipeline's way of calling its denoiser: learned from values alone, proven, or refused.

The pipeline's own `__call__` is run and listened to, with the path's scheduler in place, for two batch sizes, with
guidance off and on. `explain.py` makes recipes of these runs; here they must survive a proof on other prompts, other
noise and other times, and on the folder's own solver. What does not is refused. Nothing is trained through a guess.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from palate.models.contracts import Condition
from palate.models.explain import Run, Unlearned, learn_guided, learn_single, predictions_per_step
from palate.models.probe import Pass, denoisers, leaves, rebuild, record
from palate.models.replay import Recipe
from palate.models.schedules import Schedule

STEPS = 3  # of every probing run
ROUNDING = 2e-5
GUIDANCE, OTHER_GUIDANCE = 3.7, 2.3  # while probing and proving: not values at which two formulas agree
PROMPTS = ("a red circle", "two blue birds", "the sea at night")
OTHERS = ("a green square", "an old house", "snow")


class UnsupportedPipeline(ValueError):
    """A pipeline whose predictions cannot be recomputed outside its own call."""

    def __init__(self, pipeline: Any, difference: str, remedy: str):
        super().__init__(f"{type(pipeline).__name__}: {difference}. {remedy}")


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
        known = inspect.signature(pipeline.__call__).parameters
        self.call = {k: v for k, v in {"output_type": "latent", **call}.items() if k in known}
        self.guided: Recipe | None = None
        self.unguided_reason = ""
        try:
            self.single, two = self._learn_off(known)
        except Unlearned as reason:
            raise UnsupportedPipeline(pipeline, str(reason), "Its predictions cannot be trained on; use a pipeline of "
                                      "diffusers' own, or report this one") from None  # fmt: skip
        self.latent_shape = tuple(two.steps[0].sample.shape[1:])
        self.output_template = rebuild(two.steps[0].passes[0].output, lambda _, v: v)
        try:
            self.guided = self._learn_on(known)
        except Unlearned as reason:
            self.unguided_reason = str(reason)

    @property
    def modules(self) -> dict[str, Any]:
        return denoisers(self.pipeline)

    def run(self, prompts: Sequence[str], scale: float | None, *, seed: int = 0, steps: int = 6) -> Run:
        """The first steps of the pipeline's own call, with guidance at `scale` or off (None)."""
        settings = self.call | self.dialect.settings(scale, len(prompts)) | {"num_inference_steps": steps}
        scheduler = self.schedule.scheduler()
        trace = record(self.pipeline, scheduler, prompts, seed=seed, steps=STEPS, **settings)
        times = self.schedule.times(scheduler)[: len(trace)]
        return Run(len(prompts), trace, list(self.schedule.timestep(times)))

    def _learn_off(self, known: Mapping[str, Any]) -> tuple[Recipe, Run]:
        choices: list[dict[str, Any]] = [{}]
        if "guidance_scale" in known:
            choices += [{"guidance_scale": 1.0}, {"guidance_scale": 0.0}]
        for off in choices:
            self.dialect = Dialect(off)
            two = self.run(PROMPTS[:2], None)
            if two.steps and predictions_per_step(two) == 1:
                return learn_single(two, self.run(PROMPTS, None, seed=9), self.total), two
        raise Unlearned("guidance cannot be turned off: two predictions are made at guidance_scale 1 and 0")

    def _learn_on(self, known: Mapping[str, Any]) -> Recipe:
        off = self.dialect.off
        names = [name for name in ("guidance_scale", "true_cfg_scale") if name in known]
        for negative in (False, True) if "negative_prompt" in known else (False,):
            for name in names:
                self.dialect = Dialect(off, name, negative)
                two = self.run(PROMPTS[:2], GUIDANCE, seed=3)
                if predictions_per_step(two) > 1:
                    three = self.run(PROMPTS, GUIDANCE, seed=5)
                    return learn_guided(self.single, two, three, self.total, GUIDANCE)
        self.dialect = Dialect(off)
        raise Unlearned("it has no guidance by two predictions")

    # --- conditioning ---

    def condition(self, prompt: str, *, guided: bool) -> Condition:
        """One prompt's conditioning, [1, ...] per entry, with the denoiser stubbed."""
        recipe = self.recipe(guided)
        settings = self.call | self.dialect.settings(GUIDANCE if guided else None, 1) | {"num_inference_steps": 4}
        trace = record(self.pipeline, self.schedule.scheduler(), [prompt], seed=0, steps=1, stub=self.stub, **settings)
        return recipe.condition(trace[0].passes)

    def recipe(self, guided: bool) -> Recipe:
        if guided and self.guided is None:
            raise UnsupportedPipeline(self.pipeline, f"guidance cannot be replayed: {self.unguided_reason}",
                                      "Sample and train with guidance off (guidance_scale: null)")  # fmt: skip
        return self.guided if guided and self.guided is not None else self.single

    def stub(self, asked: Pass) -> Any:
        """Zeros of the shape the denoiser would return."""
        rows = len(dict(leaves(asked.arguments))[next(iter(self.single.slots[0].latents))])

        def zeros(_: str, value: Any) -> Any:
            return value.new_zeros(rows, *value.shape[1:]) if isinstance(value, Tensor) else value

        return rebuild(self.output_template, zeros)

    # --- proof ---

    def prove(self, tolerance: float = 0.0) -> float:
        """The largest difference between replay and pipeline on other prompts, noise and times.

        Raises UnsupportedPipeline if it exceeds the tolerance (0: bit for bit). Conditions are captured one by one and
        stacked. Rows in another order or number are held to rounding only: vectorised code treats the last elements of
        a tensor in another way, whatever row they belong to.
        """
        worst = 0.0
        for guided in (False, True) if self.guided is not None else (False,):
            scale = OTHER_GUIDANCE if guided else None
            run = self.run(OTHERS, scale, seed=21, steps=7)
            cond = Condition.cat([self.condition(prompt, guided=guided) for prompt in OTHERS])
            worst = max(worst, self._hold(run, cond, scale, tolerance))
            for order in ([2, 0, 1], [1]):
                self._hold(run.rows(order), cond[order], scale, max(tolerance, ROUNDING))
            if guided and len(self.recipe(True).slots) == 2:
                self._try_batched(run, cond, tolerance)
        self._prove_own(tolerance)
        return worst

    def _hold(self, run: Run, cond: Condition, scale: float | None, tolerance: float) -> float:
        """Replay a run. The largest difference, relative to the pipeline's prediction where that exceeds 1."""
        recipe, worst = self.recipe(scale is not None), 0.0
        for step, timestep in zip(run.steps, run.timesteps, strict=True):
            times = timestep.to(step.sample.device).expand(run.n)
            with torch.no_grad():
                replayed = recipe(self.modules, step.sample, times, cond, scale).float()
            own = step.model_output.float()
            worst = max(worst, float(((replayed - own).abs() / own.abs().clamp(min=1)).max()))
            if worst > tolerance or not bool(torch.isfinite(replayed).all()):
                raise UnsupportedPipeline(
                    self.pipeline,
                    f"a replayed prediction differs from the pipeline's own by {worst:.3g} at timestep "
                    f"{float(timestep):g}, guidance {'off' if scale is None else scale}",
                    "It keeps a state between steps or alters predictions in a way that was not found; use a pipeline "
                    "of diffusers' own, or report this one",
                )
        return worst

    def _try_batched(self, run: Run, cond: Condition, tolerance: float) -> None:
        """Make both guidance branches in one pass if that is the same."""
        assert self.guided is not None
        two_passes, self.guided = self.guided, replace(self.guided, batched=True)
        try:
            self._hold(run, cond, OTHER_GUIDANCE, tolerance)
        except (UnsupportedPipeline, RuntimeError):
            self.guided = two_passes

    def _prove_own(self, tolerance: float) -> None:
        """The same with the folder's own solver: its scaled model input is x in the path's coordinates."""
        own = copy.deepcopy(self.pipeline.scheduler)
        if type(own) is type(self.schedule.scheduler()):
            return
        scale = OTHER_GUIDANCE if self.guided is not None else None
        settings = self.call | self.dialect.settings(scale, len(OTHERS)) | {"num_inference_steps": 7}
        trace = record(self.pipeline, own, OTHERS, seed=4, steps=STEPS, **settings)
        cond = Condition.cat([self.condition(prompt, guided=scale is not None) for prompt in OTHERS])
        steps = [step for step in trace if step.passes]
        times = [torch.as_tensor(step.timestep) for step in steps]
        scaled = [replace(s, sample=scale_input(own, s.sample, t)) for s, t in zip(steps, times, strict=True)]
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
