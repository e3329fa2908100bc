"""A pipeline's way of calling its denoiser: learned from values alone, proven, or refused.

The pipeline's own `__call__` is run and listened to, with the path's scheduler in place, for two batch sizes, with
guidance off and on. `explain.py` makes recipes of these runs; here they must survive a proof on other prompts, other
noise and other times, and on the folder's own solver. What does not is refused. Nothing is trained through a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palate.models.contracts import Condition
from palate.models.dialect import Dialect, ways_off, ways_on
from palate.models.experts import find_switch, standing
from palate.models.explain import (
    Run,
    Unlearned,
    learn_always_guided,
    learn_clock,
    learn_guided,
    learn_single,
    predictions_per_step,
)
from palate.models.forms import Moment, Switch
from palate.models.probe import Pass, Step, call_parameters, denoisers, gathered, leaves, rebuild, record
from palate.models.replay import Recipe
from palate.models.schedules import Schedule, told

_TIMES = 40  # at which clocks are compared
GUIDANCE = 4.3  # while learning: not a value at which two formulas agree
# Of one length in any tokenizer, so that conditions stack even where they are not padded.
PROMPTS = ("a red fish", "a red bird", "a red boat")
REMEDY = "It cannot be trained on: use a pipeline of diffusers' own, or report this one"


class OwnCallFailed(Unlearned):
    """The pipeline's own call does not run as it was asked to."""


class UnsupportedPipeline(ValueError):
    """A pipeline whose predictions cannot be recomputed outside its own call."""

    def __init__(self, pipeline: Any, difference: str, remedy: str = ""):
        super().__init__(f"{type(pipeline).__name__}: {difference}" + (f". {remedy}" if remedy else ""))


def unforeseen(error: Exception) -> str:
    """What to say where a recording is of a shape that nothing here expects."""
    reason = str(error).strip().partition("\n")[0]
    return f"what its call does could not be made out ({type(error).__name__}: {reason})"


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
        self.dialect, self.always_guided, self.unguided_reason = Dialect(), False, ""
        self.switch: Switch | None = None
        self.text_only = False  # whether its call takes a prompt and no list of them
        self.sign = 0  # of what the scheduler is handed in the path's direction, once known
        try:
            self.single, two = self._learn_off()
            self.latent_shape = tuple(two.steps[0].sample.shape[1:])
            self.shown = {heard.name: heard for heard in two.steps[0].passes}
            if not self.always_guided:
                self.single = self._sharpened(self.single, None)
            self._learn_on()
        except Unlearned as reason:
            raise UnsupportedPipeline(pipeline, str(reason), REMEDY) from None
        except (RuntimeError, TypeError, ValueError, LookupError) as error:
            raise UnsupportedPipeline(pipeline, unforeseen(error), REMEDY) from error

    @property
    def modules(self) -> dict[str, Any]:
        return denoisers(self.pipeline)

    # --- runs of the pipeline's own call ---

    def run(
        self,
        prompts: Sequence[str],
        scale: float | None,
        *,
        seed: int,
        steps: int,
        singly: bool = False,
        beyond: bool = False,
    ) -> Run:
        """All steps of the pipeline's own call, with guidance at `scale` or off (None).

        singly: one call a prompt, row r seeded `seed + r` all the same; the passes are those of the first.
        """
        if singly and len(prompts) > 1:
            runs = [self.run([p], scale, seed=seed + row, steps=steps, beyond=beyond) for row, p in enumerate(prompts)]
            merged = [replace(some[0], sample=torch.cat([s.sample for s in some]),
                              model_output=torch.cat([s.model_output for s in some]))
                      for some in zip(*(run.steps for run in runs), strict=True)]  # fmt: skip
            return Run(len(prompts), merged, runs[0].moments)
        scheduler = self.schedule.scheduler()
        trace = self.recorded(scheduler, prompts, scale, seed=seed, steps=steps, beyond=beyond)
        if len(trace.steps) > steps:
            raise Unlearned("its call steps its scheduler more often than it is asked to: it samples in several parts")
        times = self.schedule.times(trace.scheduler)
        if self.sign == 0:
            self.sign = direction(self.schedule, trace.steps[0], times)
            try:
                self.schedule = told(self.schedule, trace.scheduler)
            except ValueError as error:
                raise Unlearned(str(error)) from None
        read = self.read(trace.steps)
        return Run(len(prompts), read, [Moment(self.schedule.timestep(t), t) for t in times[: len(read)].split(1)])

    def settings(self, scale: float | None, n: int) -> dict[str, Any]:
        """Arguments of the pipeline's call for n prompts, guided at that scale."""
        return self.dialect.settings(scale, 0 if self.text_only else n)

    def asked(self, prompts: Sequence[str]) -> Sequence[str] | str:
        """Prompts as its call takes them."""
        return prompts[0] if self.text_only else list(prompts)

    def recorded(self, scheduler: Any, prompts: Sequence[str], scale: float | None, **how: Any) -> Any:
        settings = self.call | self.settings(scale, len(prompts)) | {"num_inference_steps": how["steps"]}
        try:
            with self.in_place(scale):
                trace = record(self.pipeline, scheduler, self.asked(prompts), **how, **settings)
        except Exception as error:  # whatever code that is not ours may raise
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise OwnCallFailed(f"its own call fails for {len(prompts)} prompts ({reason})") from error
        if not trace.steps:
            raise Unlearned("its call never steps its scheduler")
        if trace.steps[0].sample.shape[:1] != (len(prompts),):
            raise OwnCallFailed(f"its own call makes {tuple(trace.steps[0].sample.shape)} of {len(prompts)} prompts")
        return trace

    def read(self, steps: list[Step]) -> list[Step]:
        """Predictions in the path's own direction, and experts under one name."""
        return [replace(step, model_output=step.model_output if self.sign > 0 else -step.model_output,
                        passes=self.renamed(step.passes)) for step in steps]  # fmt: skip

    def in_place(self, scale: float | None) -> AbstractContextManager[None]:
        """What must stand in the pipeline for the length of its call, guided at that scale."""
        return self.dialect.in_place(self.pipeline, scale)

    def _two(self, scale: float | None, *, seed: int, steps: int) -> tuple[Run, Run, bool]:
        """Runs of two and of three prompts; of one and another one, and True, where the call takes no more."""
        try:
            two = self.run(PROMPTS[:2], scale, seed=seed, steps=steps)
            return two, self.run(PROMPTS, scale, seed=seed + 8, steps=2), False
        except OwnCallFailed:
            for self.text_only in (False, True):
                with suppress(OwnCallFailed):
                    one = self.run(PROMPTS[:1], scale, seed=seed, steps=steps)
                    return one, self.run(PROMPTS[1:2], scale, seed=seed + 8, steps=2), True
            self.text_only = False
            raise

    # --- learning ---

    def _learn_off(self) -> tuple[Recipe, Run]:
        """The recipe of one prediction, and a run it was learned from."""
        runs: list[tuple[Run, Run, bool]] = []
        failed: OwnCallFailed | None = None
        for dialect in ways_off(self.pipeline):
            self.dialect = dialect
            try:
                two, three, singly = self._two(None, seed=1, steps=3)
            except OwnCallFailed as error:
                failed = failed or error
                continue
            if predictions_per_step(two) == 1:
                if len(self.modules) > 1:
                    two, three = self._find_experts(two, three)
                return replace(learn_single(two, three, self.total), singly=singly, switch=self.switch), two
            runs.append((two, three, singly))
        if not runs and failed:
            raise failed
        for two, three, singly in runs:  # at a scale of 0 or 1 one of two predictions comes through
            with suppress(Unlearned):
                recipe = learn_always_guided(two, three, self.total)
                self.always_guided = True
                return replace(recipe, singly=singly), two
        raise Unlearned("guidance cannot be turned off: two predictions are made at guidance_scale 1 and 0")

    def _find_experts(self, two: Run, three: Run) -> tuple[Run, Run]:
        """Sets `switch` if the time decides which denoiser predicts; the runs with one name for both."""

        def nothing(asked: Pass) -> Any:
            shown = two.steps[0].passes[0].output
            return rebuild(shown, lambda _, value: torch.zeros_like(value) if isinstance(value, Tensor) else value)

        def walk(times: Tensor) -> list[str]:
            prompts, scheduler = PROMPTS[: two.n], standing(self.schedule.scheduler(), times)
            trace = self.recorded(scheduler, prompts, None, seed=0, steps=len(times), stub=nothing)
            return [heard.name for step in trace.steps for heard in step.passes]

        self.switch = find_switch(walk, self.total)
        one, other = ([replace(s, passes=self.renamed(s.passes)) for s in run.steps] for run in (two, three))
        return replace(two, steps=one), replace(three, steps=other)

    def _sharpened(self, recipe: Recipe, scale: float | None) -> Recipe:
        """The recipe with clocks that hold at many times: some forms agree, to the bit, at most of them."""
        trace = self.recorded(self.schedule.scheduler(), PROMPTS[:1], scale, seed=0, steps=_TIMES, stub=self.stub)
        steps, times = self.read(trace.steps), self.schedule.times(trace.scheduler)
        moments = [Moment(self.schedule.timestep(t), t) for t in times[: len(steps)].split(1)]
        slots = []
        for index, slot in enumerate(recipe.slots):
            run = Run(1, steps, moments, slot.lists)
            made = {path: learn_clock(run.values(index, path), moments, self.total) for path in slot.clocks}
            told_at = {p: replace(made[p] or clock, once=clock.once) for p, clock in slot.clocks.items()}
            slots.append(replace(slot, clocks=told_at))
        return replace(recipe, slots=tuple(slots))

    def _learn_on(self) -> None:
        """Sets `guided` and the dialect, or the reason why there is none.

        Raises Unlearned where guidance cannot be turned off either.
        """
        without, reason = self.dialect, ""
        for dialect in ways_on(self.pipeline, without):
            self.dialect = dialect
            try:
                two, three, singly = self._two(GUIDANCE, seed=3, steps=3)
                if predictions_per_step(two) > 1:
                    guided = learn_guided(self.single, two, three, self.total, GUIDANCE)
                    self.guided = replace(guided, singly=singly, switch=self.switch)
                    break
            except OwnCallFailed:
                continue
            except Unlearned as error:
                reason = reason or str(error)
        if self.guided is None:
            self.dialect = without
            self.give_up_guidance(reason or "it has no guidance by two predictions")
            return
        self.guided = self._sharpened(self.guided, GUIDANCE)
        if self.always_guided:
            self.dialect = replace(self.dialect, stand_in=GUIDANCE)
            self.single = replace(self.guided.only_cond(), singly=self.guided.singly)

    def give_up_guidance(self, reason: str) -> None:
        if self.always_guided:
            raise Unlearned(f"its guidance cannot be turned off, nor replayed: {reason}")
        self.guided, self.unguided_reason = None, reason
        self.dialect = Dialect(self.dialect.off, always=self.dialect.always)

    # --- conditioning ---

    def condition(self, prompt: str, *, guided: bool) -> Condition:
        """One prompt's conditioning, [1, ...] per entry, with the denoiser stubbed."""
        recipe = self.recipe(guided or self.always_guided)
        scale = GUIDANCE if guided else None
        settings = self.call | self.settings(scale, 1) | {"num_inference_steps": 4}
        asked = self.asked([prompt])
        with self.in_place(scale):
            trace = record(self.pipeline, self.schedule.scheduler(), asked, seed=0, steps=1, stub=self.stub, **settings)
        return self.condition_of(recipe, trace.steps[0].passes, guided)

    def condition_of(self, recipe: Recipe, passes: list[Pass], guided: bool) -> Condition:
        """The condition of one step's passes."""
        cond = recipe.condition(self.renamed(passes))
        return cond if guided or not self.always_guided else cond.only("cond/")

    def renamed(self, passes: list[Pass]) -> list[Pass]:
        """Passes with the experts under one name."""
        if self.switch is None:
            return passes
        return [replace(p, name=self.switch.early) if p.name == self.switch.late else p for p in passes]

    def recipe(self, guided: bool) -> Recipe:
        if guided and self.guided is None:
            raise UnsupportedPipeline(self.pipeline, f"guidance cannot be replayed: {self.unguided_reason}",
                                      "Sample and train with guidance off (guidance_scale: null)")  # fmt: skip
        return self.guided if guided and self.guided is not None else self.single

    @property
    def singly(self) -> bool:
        """Whether prompts are taken one at a time, with guidance or without."""
        return self.single.singly or (self.guided is not None and self.guided.singly)

    def check_off(self) -> None:
        """Raises UnsupportedPipeline where the pipeline cannot sample without guidance."""
        if self.always_guided:
            raise UnsupportedPipeline(self.pipeline, "its own call cannot sample without guidance",
                                      "Give a guidance scale (guidance_scale: 3.0)")  # fmt: skip

    def stub(self, asked: Pass) -> Any:
        """Zeros of the shape the denoiser would return."""
        shown = self.shown[self.renamed([asked])[0].name]
        slot = self.single.slots[0]
        path = next(iter(slot.latents))
        given, before = (dict(leaves(gathered(p.arguments, slot.lists)))[path] for p in (asked, shown))

        def zeros(path: str, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            shape = [len(given), *value.shape[1:]]
            if len(shape) == given.dim():  # sizes that follow the input's
                shape = [given.shape[d] if n == before.shape[d] else n for d, n in enumerate(shape)]
            blank = value.new_zeros(shape)
            return list(blank) if path in self.single.lists else blank

        return rebuild(gathered(shown.output, self.single.lists), zeros)


def direction(schedule: Schedule, step: Step, times: Tensor) -> int:
    """1 if a step of the scheduler moves along the prediction as the path says, -1 if against it.

    Raises Unlearned if it does neither, or goes from data to noise.
    """
    if schedule.path.kind != "velocity" or step.after is None:
        return 1  # of noise tables: DDIM's own steps are the path's, if not between the same timesteps
    if not float(times[0]) > float(times[-1]):
        raise Unlearned("its scheduler walks from data to noise")
    if not float(times[0]) <= 1 + 1e-3:
        raise Unlearned(f"its noise levels begin at {float(times[0]):g}, where those of a rectified flow are at most 1")
    n = len(step.sample)
    off = {}
    for sign in (1, -1):
        x, t, t_prev = step.sample, times[0].expand(n).to(step.sample.device), times[1].expand(n).to(step.sample.device)
        mean, _ = schedule.kernel(0.0).mean_std(sign * step.model_output, x, t, t_prev)
        off[sign] = float((mean - step.after.float()).abs().max())
    best = min(off, key=lambda sign: off[sign])
    if not off[best] <= 0.05 * float((step.after.float() - step.sample.float()).abs().max()) + 1e-4:
        raise Unlearned(f"its scheduler does not step along the path: it is off by {off[best]:.3g} after one step")
    return best
