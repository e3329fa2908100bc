"""A pipeline's way of calling its denoiser: learned from values alone, proven, or refused.

The pipeline's own `__call__` is run and listened to, with the path's scheduler in place, for two batch sizes, with
guidance off and on. `explain.py` makes recipes of these runs; here they must survive a proof on other prompts, other
noise and other times, and on the folder's own solver. What does not is refused. Nothing is trained through a guess.
"""

from __future__ import annotations

import copy
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
    learn_guided,
    learn_single,
    predictions_per_step,
)
from palate.models.probe import Pass, Step, call_parameters, denoisers, gathered, leaves, rebuild, record
from palate.models.replay import Recipe, Switch
from palate.models.schedules import Schedule

ROUNDING = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of a prediction, in another batch
OTHER_KERNELS = 1e-2  # likewise, off the CPU: a float32 convolution of another batch may be computed in TF32
GUIDANCE, OTHER_GUIDANCE = 4.3, 1.93  # while probing and proving: not values at which two formulas agree
# Of one length in any tokenizer, so that conditions stack even where they are not padded.
PROMPTS = ("a red fish", "a red bird", "a red boat")
OTHERS = ("a big bird", "a big fish", "a big boat")
REMEDY = "It cannot be trained on: use a pipeline of diffusers' own, or report this one"


class OwnCallFailed(Unlearned):
    """The pipeline's own call does not run as it was asked to."""


class Rounded(Unlearned):
    """A replay is right but for rounding."""


class UnsupportedPipeline(ValueError):
    """A pipeline whose predictions cannot be recomputed outside its own call."""

    def __init__(self, pipeline: Any, difference: str, remedy: str = ""):
        super().__init__(f"{type(pipeline).__name__}: {difference}" + (f". {remedy}" if remedy else ""))


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
            self._learn_on()
        except Unlearned as reason:
            raise UnsupportedPipeline(pipeline, str(reason), REMEDY) from None

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
            runs = [self.run([p], scale, seed=seed + row, steps=steps) for row, p in enumerate(prompts)]
            merged = [replace(some[0], sample=torch.cat([s.sample for s in some]),
                              model_output=torch.cat([s.model_output for s in some]))
                      for some in zip(*(run.steps for run in runs), strict=True)]  # fmt: skip
            return Run(len(prompts), merged, runs[0].timesteps)
        scheduler = self.schedule.scheduler()
        trace = self._record(scheduler, prompts, scale, seed=seed, steps=steps, beyond=beyond)
        if len(trace.steps) > steps:
            raise Unlearned("its call steps its scheduler more often than it is asked to: it samples in several parts")
        times = self.schedule.times(trace.scheduler)
        self.sign = self.sign or direction(self.schedule, trace.steps[0], times)
        steps = self._read(trace.steps)
        return Run(len(prompts), steps, list(self.schedule.timestep(times[: len(steps)])))

    def settings(self, scale: float | None, n: int) -> dict[str, Any]:
        """Arguments of the pipeline's call for n prompts, guided at that scale."""
        return self.dialect.settings(scale, 0 if self.text_only else n)

    def asked(self, prompts: Sequence[str]) -> Sequence[str] | str:
        """Prompts as its call takes them."""
        return prompts[0] if self.text_only else list(prompts)

    def _record(
        self,
        scheduler: Any,
        prompts: Sequence[str],
        scale: float | None,
        *,
        seed: int,
        steps: int,
        beyond: bool = False,
    ) -> Any:
        settings = self.call | self.settings(scale, len(prompts)) | {"num_inference_steps": steps}
        asked = self.asked(prompts)
        try:
            with self.in_place(scale):
                trace = record(self.pipeline, scheduler, asked, seed=seed, steps=steps, beyond=beyond, **settings)
        except (Exception, SystemExit) as error:  # whatever code that is not ours may raise
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise OwnCallFailed(f"its own call fails for {len(prompts)} prompts ({reason})") from error
        if not trace.steps:
            raise Unlearned("its call never steps its scheduler")
        if trace.steps[0].sample.shape[:1] != (len(prompts),):
            raise OwnCallFailed(f"its own call makes {tuple(trace.steps[0].sample.shape)} of {len(prompts)} prompts")
        return trace

    def _read(self, steps: list[Step]) -> list[Step]:
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
            prompts = PROMPTS[: two.n]
            settings = self.call | self.settings(None, two.n) | {"num_inference_steps": len(times)}
            scheduler = standing(self.schedule.scheduler(), times)
            with self.in_place(None):
                trace = record(
                    self.pipeline, scheduler, self.asked(prompts), seed=0, steps=len(times), stub=nothing, **settings
                )
            return [heard.name for step in trace.steps for heard in step.passes]

        self.switch = find_switch(walk, self.total)
        one, other = ([replace(s, passes=self.renamed(s.passes)) for s in run.steps] for run in (two, three))
        return replace(two, steps=one), replace(three, steps=other)

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
            self._give_up_guidance(reason or "it has no guidance by two predictions")
        elif self.always_guided:
            self.dialect = replace(self.dialect, stand_in=GUIDANCE)
            self.single = replace(self.guided.only_cond(), singly=self.guided.singly)

    def _give_up_guidance(self, reason: str) -> None:
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

    # --- proof ---

    def prove(self, tolerance: float = 0.0) -> None:
        """Hold the replay against the pipeline on other prompts, noise and times, and on its folder's own solver.

        Raises UnsupportedPipeline where they differ by more than the tolerance (0: bit for bit) without guidance; with
        guidance, that alone is given up. Conditions are captured one by one and stacked. Rows in another order or
        number are held to rounding only: vectorised code treats the last elements of a tensor in another way, whatever
        row they belong to.
        """
        try:
            self._prove_somehow(None, tolerance)
            if self.guided is not None:
                try:
                    self._prove_somehow(OTHER_GUIDANCE, tolerance)
                except Unlearned as reason:
                    self._give_up_guidance(str(reason))
        except Unlearned as reason:
            raise UnsupportedPipeline(self.pipeline, str(reason), REMEDY) from None

    def _prove_somehow(self, scale: float | None, tolerance: float) -> None:
        """Of prompts together; or, if that holds to rounding only, of one prompt at a time."""
        recipe, guided = self.recipe(scale is not None), scale is not None
        try:
            self._prove(scale, tolerance)
        except Rounded:
            if recipe.singly:
                raise
            self._set(replace(recipe, singly=True, batched=False), guided)
            self._prove(scale, tolerance)

    def _set(self, recipe: Recipe, guided: bool) -> None:
        if guided:
            self.guided = recipe
        else:
            self.single = recipe

    def _prove(self, scale: float | None, tolerance: float) -> None:
        if scale is None and self.always_guided:
            self._prove_branch(tolerance)
            return
        singly = self.recipe(scale is not None).singly
        run = self.run(OTHERS, scale, seed=21, steps=4, singly=singly, beyond=not singly)
        cond = Condition.cat([self.condition(prompt, guided=scale is not None) for prompt in OTHERS])
        try:
            self._hold(run, cond, scale, tolerance)
        except Rounded:
            if singly:
                raise
            # Encoders may round a prompt's embedding in another way in company: then with the call's own.
            cond = self.condition_of(self.recipe(scale is not None), run.steps[0].passes, scale is not None)
            self._hold(run, cond, scale, tolerance)
        for order in ([2, 0, 1], [1]):
            self._hold(run.rows(order), cond[order], scale, self._rounding(run, tolerance))
        if scale is not None and len(self.recipe(True).slots) == 2:
            self._try_batched(run, cond, tolerance)
        self._prove_own(cond, scale, tolerance)

    def _rounding(self, run: Run, tolerance: float) -> float:
        """What rows in another order or number may differ by."""
        rounding = ROUNDING.get(run.steps[0].model_output.dtype, 0.1)
        return max(tolerance, rounding, OTHER_KERNELS if tolerance else 0.0)

    def _prove_branch(self, tolerance: float) -> None:
        """Where guidance cannot be turned off: the conditional branch alone is what it is beside the other one."""
        assert self.guided is not None
        run = self.run(OTHERS[:1], OTHER_GUIDANCE, seed=21, steps=4)
        cond = self.condition(OTHERS[0], guided=False)
        steps = []
        for step in run.steps:
            found: dict[str, Tensor] = {}
            for slot, heard in zip(self.guided.slots, step.passes, strict=True):
                found |= self.guided.predictions(slot, heard.output)
            steps.append(replace(step, model_output=found["cond"]))
        self._hold(replace(run, steps=steps), cond, None, self._rounding(run, tolerance))

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
            except Exception as error:  # whatever code that is not ours may raise
                reason = str(error).strip().partition("\n")[0]
                raise Unlearned(f"its denoiser cannot be called outside its own call {at} ({reason})") from error
            worst = float(((replayed - own).abs() / own.abs().clamp(min=1)).max())
            if not worst <= tolerance:
                reason = Rounded if worst <= self._rounding(run, tolerance) else Unlearned
                raise reason(f"a replayed prediction differs from the pipeline's own by {worst:.3g} {at}: it keeps "
                                "a state between steps, or alters predictions in a way that was not found")  # fmt: skip

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
        if type(own) is type(self.schedule.scheduler()) or self.sign < 0:
            return
        prompts = OTHERS[:1] if self.recipe(scale is not None).singly else OTHERS
        trace = self._record(own, prompts, scale, seed=4, steps=4)
        steps = [step for step in self._read(trace.steps) if step.passes]
        times = [torch.as_tensor(step.timestep) for step in steps]
        walked = trace.scheduler
        scaled = [replace(s, sample=scale_input(walked, s.sample, t)) for s, t in zip(steps, times, strict=True)]
        self._hold(Run(len(prompts), scaled, times), cond[: len(prompts)], scale, tolerance)


def direction(schedule: Schedule, step: Step, times: Tensor) -> int:
    """1 if a step of the scheduler moves along the prediction as the path says, -1 if against it.

    Raises Unlearned if it does neither, or goes from data to noise.
    """
    if schedule.path.kind != "velocity" or step.after is None:
        return 1  # of noise tables: DDIM's own steps are the path's, if not between the same timesteps
    if not float(times[0]) > float(times[-1]):
        raise Unlearned("its scheduler walks from data to noise")
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


def scale_input(scheduler: Any, sample: Tensor, timestep: Tensor) -> Tensor:
    """`scale_model_input` as at that timestep of a walked scheduler."""
    if not hasattr(scheduler, "scale_model_input"):
        return sample
    fresh = copy.deepcopy(scheduler)
    for counter in ("_step_index", "_begin_index"):  # so that it looks the timestep up
        if hasattr(fresh, counter):
            setattr(fresh, counter, None)
    return fresh.scale_model_input(sample, timestep)
