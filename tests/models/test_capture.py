"""Replay is what the pipeline hands its scheduler, bit for bit; what cannot be replayed is refused by name."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline
from torch import Tensor

from palate.models.capture import UnsupportedPipeline
from palate.models.contracts import Condition
from palate.models.diffusion import DiffusionPolicy
from palate.models.explain import find
from palate.models.probe import leaves, override_step, rebuild, record
from palate.models.proof import OTHER_GUIDANCE
from tests import zoo

NAMES = sorted(zoo.CALLS)
PROMPTS = ["a cat on a mat", "blue", "three small boats"]


@cache
def policy(name: str) -> DiffusionPolicy:
    return DiffusionPolicy(zoo.build(name), call=zoo.CALLS[name])


def trace(held: DiffusionPolicy, prompts: list[str], scale: float | None, *, seed: int, steps: int = 4) -> list[Any]:
    """All steps of the pipeline's own call, with its own text encoding, under the path's scheduler."""
    settings = held.call | held.capture.dialect.settings(scale, len(prompts))
    settings |= {"num_inference_steps": steps, "output_type": "latent"}
    return record(held.pipeline, held.schedule.scheduler(), prompts, seed=seed, steps=steps, **settings).steps


def clock(held: DiffusionPolicy, steps: int, **settings: Any) -> Tensor:
    """The policy's times along a walk."""
    generators = [torch.Generator().manual_seed(0)]
    _, record = held.generate(["x"], generators, num_inference_steps=steps, guidance_scale=None, eta=0.0)
    return record.t


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 4.2])
@pytest.mark.parametrize("name", NAMES)
def test_prediction_is_what_the_scheduler_is_handed(name: str, scale: float | None) -> None:
    held, times = policy(name), clock(policy(name), 4)
    with torch.no_grad():
        steps = trace(held, PROMPTS[:1], scale, seed=11)
        cond = held.condition(PROMPTS[:1], guided=scale is not None)
        assert len(steps) == 4
        for step, t in zip(steps, times, strict=False):
            predicted = held.predict(step.sample, t[None], cond, scale)
            assert torch.equal(predicted, step.model_output)
            assert bool(predicted.any())


@pytest.mark.parametrize("scale", [None, 4.2])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_other_rows_and_latents(name: str, scale: float | None) -> None:
    held, times = policy(name), clock(policy(name), 4)
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(3, *held.latent_shape, generator=generator)
    with torch.no_grad(), held._encoding():
        settings = held.call | held.capture.dialect.settings(scale, 3) | {"latents": latents, "output_type": "latent"}
        settings |= {"num_inference_steps": 4}
        steps = record(held.pipeline, held.schedule.scheduler(), PROMPTS, seed=1, steps=4, **settings).steps
        cond = Condition.cat([held.condition([p], guided=scale is not None) for p in PROMPTS])
        for step, t in zip(steps, times, strict=False):
            assert torch.equal(held.predict(step.sample, t.expand(3), cond, scale), step.model_output)


@pytest.mark.parametrize("name", NAMES)
def test_rows_may_stand_at_different_times(name: str) -> None:
    held, times = policy(name), clock(policy(name), 4)
    x = torch.randn(3, *held.latent_shape, generator=torch.Generator().manual_seed(6))
    cond = held.condition(PROMPTS, guided=True)
    with torch.no_grad():
        together = held.predict(x, times[:3], cond, 3.0)
        for row in range(3):
            alone = held.predict(x[row : row + 1], times[row : row + 1], cond[row], 3.0)
            assert torch.allclose(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_guidance_matters_and_off_is_the_conditional_branch(name: str) -> None:
    held = policy(name)
    x = torch.randn(2, *held.latent_shape, generator=torch.Generator().manual_seed(7))
    t = clock(held, 4)[:1].expand(2)
    guided, plain = held.condition(PROMPTS[:2], guided=True), held.condition(PROMPTS[:2])
    with torch.no_grad():
        off = held.predict(x, t, guided)
        assert torch.equal(off, held.predict(x, t, plain))
        on = held.predict(x, t, guided, 5.0)
    assert not torch.allclose(on, off, atol=1e-4)
    with pytest.raises(ValueError, match="guided=True"):
        held.predict(x, t, plain, 5.0)


def test_gradients_reach_the_module() -> None:
    held = policy("sd15").with_module(copy.deepcopy(policy("sd15").module))
    held.module.requires_grad_(True)
    x = torch.randn(1, *held.latent_shape, generator=torch.Generator().manual_seed(8))
    held.predict(x, torch.tensor([5]), held.condition(["a"], guided=True), 2.0).square().mean().backward()
    assert all(p.grad is not None for n, p in held.module.named_parameters() if "attn2.to_k" in n)


def test_embedded_guidance_is_conditioning() -> None:
    """FLUX.1-dev is told its guidance as a number; guidance off leaves that where the call put it."""
    told = DiffusionPolicy(zoo.build("flux"), call={**zoo.CALLS["flux"], "guidance_scale": 2.0})
    assert torch.equal(told.condition(["a"]).rows["cond/guidance"], torch.tensor([2.0]))
    assert policy("flux").condition(["a"]).rows["cond/guidance"].item() == 3.5


# --- refusal ----------------------------------------------------------------------------------------------------------


def meddling(base: type, alter: Any) -> Any:
    """A pipeline class whose scheduler is handed `alter(prediction, state)` instead of the prediction."""

    class Meddling(base):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            kept, state = self.scheduler, dict[str, Tensor]()
            own = type(kept).step

            def step(scheduler: Any, model_output: Tensor, *rest: Any, **options: Any) -> Any:
                return own(scheduler, alter(model_output, state), *rest, **options)

            vars(self)["scheduler"] = override_step(copy.deepcopy(kept), step)
            try:
                return super().__call__(*args, **kwargs)
            finally:
                vars(self)["scheduler"] = kept

    return Meddling


def with_momentum(prediction: Tensor, state: dict[str, Tensor]) -> Tensor:
    state["mean"] = 0.5 * state.get("mean", prediction) + 0.5 * prediction
    return state["mean"]


def clamped(prediction: Tensor, state: dict[str, Tensor]) -> Tensor:
    return prediction.clamp(-0.5, 0.5)


@pytest.mark.parametrize("alter", [with_momentum, clamped])
@pytest.mark.parametrize(("name", "base"), [("sd15", StableDiffusionPipeline), ("flux", FluxPipeline)])
def test_altered_predictions_are_refused(name: str, base: type, alter: Any) -> None:
    pipeline = copy.copy(zoo.build(name))
    pipeline.__class__ = meddling(base, alter)
    with pytest.raises(UnsupportedPipeline, match=r"Meddling: .*prediction.*") as caught:
        DiffusionPolicy(pipeline, call=zoo.CALLS[name])
    assert "\n" not in str(caught.value)


class Rescaling(StableDiffusionPipeline):
    """Guidance with rescale on: a formula over a whole row, not one of the known ones."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **{**kwargs, "guidance_rescale": 0.7})


def test_unknown_guidance_is_refused_when_asked_for_and_only_then() -> None:
    pipeline = copy.copy(zoo.build("sd15"))
    pipeline.__class__ = Rescaling
    held = DiffusionPolicy(pipeline)
    assert held.default_settings["guidance_scale"] is None
    x = torch.randn(1, *held.latent_shape, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(held.predict(x, torch.tensor([10]), held.condition(["a"]))).all()
    with pytest.raises(UnsupportedPipeline, match=r"Rescaling: guidance cannot be replayed: .* guidance off"):
        held.condition(["a"], guided=True)


def test_guidance_that_remembers_costs_guidance_only() -> None:
    pipeline = copy.copy(zoo.build("sd15"))
    pipeline.__class__ = meddling(StableDiffusionPipeline, lambda x, state: x)

    class Drifting(type(pipeline)):  # type: ignore[misc]
        """Guidance that grows with every call: right while learning, wrong while proving."""

        calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            type(self).calls += kwargs.get("guidance_scale") == OTHER_GUIDANCE
            more = 0.5 * (type(self).calls > 0) * (kwargs.get("guidance_scale", 1.0) > 1)
            return super().__call__(*args, **{**kwargs, "guidance_scale": kwargs.get("guidance_scale", 7.5) + more})

    pipeline.__class__ = Drifting
    held = DiffusionPolicy(pipeline)
    assert held.condition(["a"]).rows
    with pytest.raises(UnsupportedPipeline, match="Drifting: guidance cannot be replayed: a replayed prediction"):
        held.condition(["a"], guided=True)


def test_arguments_that_a_call_does_not_take_are_named() -> None:
    with pytest.raises(ValueError, match="takes no argument 'hight'"):
        DiffusionPolicy(zoo.build("sd15"), call={"hight": 64})


def test_zero_predictions_prove_nothing() -> None:
    pipeline = copy.copy(zoo.build("sd15"))
    pipeline.unet = copy.deepcopy(pipeline.unet)
    torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
    torch.nn.init.zeros_(pipeline.unet.conv_out.bias)
    with pytest.raises(UnsupportedPipeline, match="zero"):
        DiffusionPolicy(pipeline)


def test_branches_that_agree_prove_nothing() -> None:
    pipeline = copy.copy(zoo.build("sd15"))
    pipeline.unet = copy.deepcopy(pipeline.unet)
    for name, parameter in pipeline.unet.named_parameters():
        if "attn2.to_out" in name:
            parameter.data.zero_()
    with pytest.raises(UnsupportedPipeline, match="same"):
        DiffusionPolicy(pipeline).condition(["a"], guided=True)


def test_a_clipping_scheduler_is_refused() -> None:
    pipeline = copy.copy(zoo.build("sd_v_zero_snr"))
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, clip_sample=True)
    with pytest.raises(UnsupportedPipeline, match="clip_sample"):
        DiffusionPolicy(pipeline)


# --- the tools --------------------------------------------------------------------------------------------------------


def test_a_tensor_is_found_permuted_packed_and_among_others() -> None:
    source = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    permuted = source.permute(0, 3, 1, 2).reshape(4, 5, 6)
    layout = find(source, permuted, whole=True)
    assert layout is not None
    assert torch.equal(layout(source), permuted)
    beside = torch.cat([source, torch.ones(4, 1, 3, 5)], 1)
    layout = find(source, beside, whole=True)
    assert layout is not None
    assert layout.has_rest
    assert torch.equal(layout(source, layout.blank(beside)), beside)
    assert find(source, source[:, :1], whole=True) is None
    assert find(source, source + 1, whole=False) is None
    part = find(source, source[:, :1], whole=False)
    assert part is not None
    assert torch.equal(part(source), source[:, :1])


def test_trees_keep_their_shape() -> None:
    tree = {"a": [1, (2, None)], "b": {"c": 3}}
    assert dict(leaves(tree)) == {"a.0": 1, "a.1.0": 2, "a.1.1": None, "b.c": 3}
    assert rebuild(tree, lambda path, value: value) == tree
