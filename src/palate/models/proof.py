"""The proof of a capture: what was learned is held against the pipeline at other prompts, noise and times."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palate.models.capture import REMEDY, Capture, UnsupportedPipeline, unforeseen
from palate.models.contracts import Condition
from palate.models.explain import Run, Unlearned
from palate.models.forms import Moment
from palate.models.replay import Recipe

ROUNDING = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of a prediction, in another batch
OTHER_KERNELS = 1e-2  # likewise, off the CPU: a float32 convolution of another batch may be computed in TF32
OTHER_GUIDANCE = 1.93  # neither the scale that was learned from, nor one at which two formulas agree
OTHERS = ("a big bird", "a big fish", "a big boat")  # of one length, as those that were learned from


class Rounded(Unlearned):
    """A replay is right but for rounding."""


def prove(capture: Capture, tolerance: float = 0.0) -> None:
    """Hold the replay against the pipeline on other prompts, noise and times, and on its folder's own solver.

    Raises UnsupportedPipeline where they differ by more than the tolerance (0: bit for bit) without guidance; with
    guidance, that alone is given up. Conditions are captured one by one and stacked. Rows in another order or number
    are held to rounding only: vectorised code treats the last elements of a tensor in another way, whatever row they
    belong to. What does not hold for prompts together, and exactly for one, is replayed one by one.
    """
    try:
        _somehow(capture, None, tolerance)
        if capture.guided is not None:
            try:
                _somehow(capture, OTHER_GUIDANCE, tolerance)
            except Unlearned as reason:
                capture.give_up_guidance(str(reason))
    except Unlearned as reason:
        raise UnsupportedPipeline(capture.pipeline, str(reason), REMEDY) from None
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise UnsupportedPipeline(capture.pipeline, unforeseen(error), REMEDY) from error


def _somehow(capture: Capture, scale: float | None, tolerance: float) -> None:
    """Of prompts together; or, if that does not hold, of one prompt at a time."""
    guided = scale is not None
    try:
        _prove(capture, scale, tolerance)
    except Unlearned as reason:
        recipe = capture.recipe(guided)
        if recipe.singly:
            raise
        _put(capture, replace(recipe, singly=True, batched=False), guided)
        try:
            _prove(capture, scale, tolerance)
        except Unlearned:
            raise reason from None


def _put(capture: Capture, recipe: Recipe, guided: bool) -> None:
    if guided:
        capture.guided = recipe
    else:
        capture.single = recipe


def _prove(capture: Capture, scale: float | None, tolerance: float) -> None:
    guided = scale is not None
    if not guided and capture.always_guided:
        _prove_branch(capture, tolerance)
        return
    singly = capture.recipe(guided).singly
    run = capture.run(OTHERS, scale, seed=21, steps=4, singly=singly, beyond=True)
    cond = Condition.cat([capture.condition(prompt, guided=guided) for prompt in OTHERS])
    try:
        hold(capture, run, cond, scale, tolerance)
    except Rounded:
        if singly:
            raise
        # Encoders may round a prompt's embedding in another way in company: then with the call's own.
        cond = capture.condition_of(capture.recipe(guided), run.steps[0].passes, guided)
        hold(capture, run, cond, scale, tolerance)
    for order in ([2, 0, 1], [1]):
        hold(capture, run.rows(order), cond[order], scale, _rounding(run, tolerance))
    if guided and len({slot.name for slot in capture.recipe(True).slots}) < len(capture.recipe(True).slots):
        _try_batched(capture, run, cond, tolerance)
    _prove_own(capture, cond, scale, tolerance)


def _rounding(run: Run, tolerance: float) -> float:
    """What rows in another order or number may differ by."""
    rounding = ROUNDING.get(run.steps[0].model_output.dtype, 0.1)
    return max(tolerance, rounding, OTHER_KERNELS if tolerance else 0.0)


def hold(capture: Capture, run: Run, cond: Condition, scale: float | None, tolerance: float) -> None:
    """Replay a run. Differences are relative to the pipeline's prediction where that exceeds 1.

    Raises Unlearned where they exceed the tolerance; `Rounded`, if that is all.
    """
    recipe = capture.recipe(scale is not None)
    for step, moment in zip(run.steps, run.moments, strict=True):
        own = step.model_output.float()
        at = f"at timestep {float(moment.timestep):g}, guidance {'off' if scale is None else scale}"
        if not bool(torch.isfinite(own).all()):
            raise Unlearned(f"its own predictions are not finite {at}: is the dtype too narrow for it?")
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                replayed = recipe(capture.modules, step.sample, moment.of(step.sample), cond, scale).float()
        except Exception as error:  # whatever code that is not ours may raise
            reason = str(error).strip().partition("\n")[0]
            raise Unlearned(f"its denoiser cannot be called outside its own call {at} ({reason})") from error
        worst = float(((replayed - own).abs() / own.abs().clamp(min=1)).max())
        if not worst <= tolerance:
            kind = Rounded if worst <= _rounding(run, tolerance) else Unlearned
            raise kind(f"a replayed prediction differs from the pipeline's own by {worst:.3g} {at}: it keeps a state "
                       "between steps, or alters predictions in a way that was not found")  # fmt: skip


def _prove_branch(capture: Capture, tolerance: float) -> None:
    """Where guidance cannot be turned off: the conditional branch alone is what it is beside the other one."""
    assert capture.guided is not None
    run = capture.run(OTHERS[:1], OTHER_GUIDANCE, seed=21, steps=4)
    steps = []
    for step in run.steps:
        found: dict[str, Tensor] = {}
        for slot, heard in zip(capture.guided.slots, step.passes, strict=True):
            found |= capture.guided.predictions(slot, heard.output)
        steps.append(replace(step, model_output=found["cond"]))
    cond = capture.condition(OTHERS[0], guided=False)
    hold(capture, replace(run, steps=steps), cond, None, _rounding(run, tolerance))


def _try_batched(capture: Capture, run: Run, cond: Condition, tolerance: float) -> None:
    """Make both guidance branches in one pass if that is the same, for several prompts and for one."""
    assert capture.guided is not None
    alone = capture.run(OTHERS[:1], OTHER_GUIDANCE, seed=21, steps=4)
    two_passes, capture.guided = capture.guided, replace(capture.guided, batched=True)
    try:
        hold(capture, run, cond, OTHER_GUIDANCE, tolerance)
        hold(capture, alone, cond[0], OTHER_GUIDANCE, tolerance)
    except Unlearned:
        capture.guided = two_passes


def _prove_own(capture: Capture, cond: Condition, scale: float | None, tolerance: float) -> None:
    """The same with the folder's own solver: its scaled model input is x in the path's coordinates."""
    own = copy.deepcopy(capture.pipeline.scheduler)
    if type(own) is type(capture.schedule.scheduler()) or capture.sign < 0:
        return
    prompts = OTHERS[:1] if capture.recipe(scale is not None).singly else OTHERS
    trace = capture.recorded(own, prompts, scale, seed=4, steps=4)
    steps = [step for step in capture.read(trace.steps) if step.passes]
    times, walked = [torch.as_tensor(step.timestep).view(1) for step in steps], trace.scheduler
    levels = [time / capture.total for time in times]
    if capture.schedule.path.kind == "velocity" and len(getattr(walked, "sigmas", ())) > len(steps):
        levels = list(walked.sigmas[: len(steps)].split(1))  # such solvers round their timesteps
    moments = [Moment(time, level) for time, level in zip(times, levels, strict=True)]
    scaled = [replace(s, sample=scale_input(walked, s.sample, t[0])) for s, t in zip(steps, times, strict=True)]
    hold(capture, Run(len(prompts), scaled, moments), cond[: len(prompts)], scale, tolerance)


def scale_input(scheduler: Any, sample: Tensor, timestep: Tensor) -> Tensor:
    """`scale_model_input` as at that timestep of a walked scheduler."""
    if not hasattr(scheduler, "scale_model_input"):
        return sample
    fresh = copy.deepcopy(scheduler)
    for counter in ("_step_index", "_begin_index"):  # so that it looks the timestep up
        if hasattr(fresh, counter):
            setattr(fresh, counter, None)
    return fresh.scale_model_input(sample, timestep)
