"""The policy over a pipeline: loading, memoised conditions, codecs, adapters, and the check of the prediction kind."""

from __future__ import annotations

import copy
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image

from palate import sampling
from palate.models import diffusion
from palate.models.contracts import Condition
from palate.models.diffusion import DiffusionPolicy, check_prediction_kind, resolve_model
from palate.models.embeds import Memo
from palate.models.loading import Sparing
from tests import zoo

NAMES = sorted(zoo.CALLS)


@cache
def policy(name: str) -> DiffusionPolicy:
    return DiffusionPolicy(zoo.build(name), call=zoo.CALLS[name])


def pictures(n: int = 2) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(n)]


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_saved_folder_predicts_the_same(name: str, tmp_path: Path) -> None:
    zoo.build(name).save_pretrained(tmp_path)
    loaded, held = DiffusionPolicy.load(tmp_path, call=zoo.CALLS[name]), policy(name)
    x = torch.randn(2, *held.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([3, 500]) if name == "sd15" else torch.tensor([0.1, 0.9])
    with torch.no_grad():
        mine, theirs = (p.predict(x, t, p.condition(["a", "b"], guided=True), 2.0) for p in (held, loaded))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)  # the same weights in another order in memory
    assert not loaded.module.training
    parts = [c for c in loaded.pipeline.components.values() if isinstance(c, torch.nn.Module)]
    assert not any(p.requires_grad for part in parts for p in part.parameters())


def test_what_cannot_be_read_is_named_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent: no such folder"):
        DiffusionPolicy.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no model_index.json; give the folder"):
        DiffusionPolicy.load(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(FileNotFoundError, match=str(tmp_path)) as caught:
        DiffusionPolicy.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_mistyped_folder_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model("runs/x") == "runs/x"
    (tmp_path / "runs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"runs/x: no such folder in runs"):
        resolve_model("runs/x")


def test_off_the_cpu_replays_are_held_to_what_their_precision_allows() -> None:
    assert diffusion.tolerance_of("cpu", torch.float32) == diffusion.tolerance_of("cpu", torch.bfloat16) == 0
    assert diffusion.tolerance_of("cuda", torch.float32) == 1e-3
    assert diffusion.tolerance_of("cuda", torch.float16) == diffusion.tolerance_of("mps", torch.bfloat16) == 2e-2


def test_names_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model("owner/model") == "owner/model"
    with pytest.raises(FileNotFoundError, match="unknown world 'nowhere'; known: shapes"):
        resolve_model("world:nowhere")
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setattr("palate.worlds.shapes.weights_dir", lambda: tmp_path)
    assert resolve_model("world:shapes") == str(tmp_path)
    assert resolve_model(tmp_path) == str(tmp_path)


def test_defaults_are_the_pipelines_own() -> None:
    assert policy("sd15").default_settings == {"num_inference_steps": 50, "guidance_scale": 7.5}
    assert policy("flux").default_settings == {"num_inference_steps": 28, "guidance_scale": None}


# --- conditioning -----------------------------------------------------------------------------------------------------


def test_a_guidance_scale_of_one_is_guidance_off() -> None:
    """Pipelines do not guide at 1: taking half of the rows for an unconditional branch would mix up the prompts."""
    held, prompts = policy("sd15"), ["a cat", "a dog", "a cow", "a hen"]
    how = {"seed": 0, "num_inference_steps": 2, "eta": 1.0}
    off, one = (sampling.rollout(held, prompts, list("abcd"), **how, guidance_scale=g) for g in (None, 1.0))
    assert len(one.cond) == 4 and not one.cond.guided and one.guidance_scale is None
    assert torch.equal(one.x, off.x)
    with pytest.raises(ValueError, match="at a guidance scale of 1 it does not guide; pass None"):
        held.generate(prompts, [torch.Generator() for _ in prompts], num_inference_steps=2, guidance_scale=1.0, eta=1.0)


def counting(held: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of the text encoder's forward, as they happen."""
    seen: list[Any] = []
    encoder = held.pipeline.text_encoder
    forward = encoder.forward

    def listen(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return forward(*args, **kwargs)

    monkeypatch.setattr(encoder, "forward", listen)
    return seen


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_prompt_is_encoded_once_and_no_denoiser_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = DiffusionPolicy(zoo.build(name), call=zoo.CALLS[name])
    calls = counting(held, monkeypatch)
    first = held.condition(["one fish", "two fish", "one fish"])
    assert len(first) == 3
    encoded = len(calls)
    again = held.condition(["two fish", "one fish"])
    assert len(calls) == encoded
    for key, value in again.rows.items():
        assert torch.equal(value, first.rows[key][[1, 0]])
    generators = [torch.Generator().manual_seed(0)]
    held.generate(["two fish"], generators, num_inference_steps=2, guidance_scale=None, eta=0.5)
    assert len(calls) == encoded


def test_conditioning_stubs_the_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    held = DiffusionPolicy(zoo.build("sdxl"))

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the denoiser ran")

    monkeypatch.setattr(held.module.conv_in, "forward", never)
    assert held.condition(["a", "b"], guided=True).guided


@pytest.mark.parametrize("name", NAMES)
def test_conditions_stack_index_and_drop(name: str) -> None:
    held = policy(name)
    cond, null = held.condition(["a", "b"], guided=True), held.condition([""], guided=True)
    assert cond.key == null.key
    dropped = cond.where(torch.tensor([True, False]), null)
    for key, value in dropped.rows.items():
        assert torch.equal(value[0], null.rows[key][0])
        assert torch.equal(value[1], cond.rows[key][1])
    assert any(not torch.equal(cond.rows[key][0], cond.rows[key][1]) for key in cond.rows)


def test_the_memo_forgets_the_least_used_by_bytes() -> None:
    memo = Memo(budget=100)
    for key in "abc":
        memo.get(key, lambda: None, lambda _: 40)
    assert (len(memo), memo.misses, memo.held) == (2, 3, 80)
    memo.get("b", lambda: None, lambda _: 40)
    memo.get("d", lambda: None, lambda _: 40)
    memo.get("b", lambda: None, lambda _: 40)
    assert memo.misses == 4
    memo.get("a", lambda: None, lambda _: 40)
    assert memo.misses == 5


# --- media ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_encode_undoes_the_scaling_and_packing_of_decode(name: str) -> None:
    held = policy(name)
    x0 = held.encode(pictures())
    assert x0.shape == (2, *held.latent_shape)
    assert torch.equal(x0, held.encode(pictures()))
    media = held.decode(x0)
    assert [m.size for m in media] == [(16, 16)] * 2
    # An autoencoder without loss, in place of the random one, must give the pictures back.
    assert held._codec is not None
    vae = held.pipeline.vae
    z = vae.encode(held.pipeline.image_processor.preprocess(pictures())).latent_dist.mode()
    seen: list[torch.Tensor] = []
    decode = vae.decode

    def listen(latent: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(latent)
        return decode(latent, *args, **kwargs)

    with diffusion.swapped(vae, decode=listen):
        held.decode(x0)
    assert torch.allclose(seen[0], z, atol=1e-5)


def test_codecs_are_read_off_the_pipelines_own_decoding() -> None:
    """Scaled and shifted by channel, whatever the size; or packed into tokens of 2 x 2, of one size."""
    found = {}
    for name in NAMES:
        policy(name).encode(pictures(1))
        found[name] = policy(name)._codec
    sd15, sd3, flux = found["sd15"], found["sd3"], found["flux"]
    assert sd15 is not None
    assert sd3 is not None
    assert flux is not None
    assert sd15.index is sd3.index is None
    assert torch.allclose(sd15.scale.flatten(), torch.full((4,), 1 / 0.18215))
    assert torch.allclose(sd3.shift.flatten(), torch.full((4,), 0.0609), atol=1e-6)
    assert flux.index is not None
    assert not torch.equal(flux.index, torch.arange(len(flux.index)))
    wide = Image.new("RGB", (32, 16))
    assert policy("sd15").encode([wide]).shape == (1, 4, 8, 16)
    with pytest.raises(ValueError, match="bring all media to the size"):
        policy("flux").encode([wide])


# --- other weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
def test_a_disabled_adapter_is_the_base_bit_for_bit(name: str) -> None:
    pipeline = copy.copy(zoo.build(name))
    part = "unet" if name == "sd15" else "transformer"
    module = copy.deepcopy(getattr(pipeline, part))
    vars(pipeline)[part] = module
    held = DiffusionPolicy(pipeline, call=zoo.CALLS[name])
    x = torch.randn(2, *held.latent_shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 500]) if name == "sd15" else torch.tensor([0.1, 0.9])
    cond = held.condition(["a", "b"], guided=True)
    with torch.no_grad():
        base = held.predict(x, t, cond, 2.0)
        module.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        assert not torch.equal(held.predict(x, t, cond, 2.0), base)
        module.disable_adapters()
        assert torch.equal(held.predict(x, t, cond, 2.0), base)
        module.enable_adapters()
        generators = [torch.Generator().manual_seed(0)]
        _, record = held.generate(["a"], generators, num_inference_steps=2, guidance_scale=None, eta=0.0)
        module.disable_adapters()
        _, plain = policy(name).generate(
            ["a"], [torch.Generator().manual_seed(0)], num_inference_steps=2, guidance_scale=None, eta=0.0
        )
    assert not torch.equal(record.x[:, -1], plain.x[:, -1])


def test_another_module_predicts_and_samples_in_its_place() -> None:
    held = policy("sd15")
    other = copy.deepcopy(held.module)
    torch.nn.init.normal_(other.conv_out.bias)
    twin = held.with_module(other)
    x, t, cond = torch.zeros(1, *held.latent_shape), torch.tensor([7]), held.condition(["a"])
    with torch.no_grad():
        assert not torch.equal(twin.predict(x, t, cond), held.predict(x, t, cond))
    sampled = [
        p.generate(["a"], [torch.Generator().manual_seed(0)], num_inference_steps=2, guidance_scale=None, eta=0.0)[1].x
        for p in (held, twin)
    ]
    assert torch.equal(sampled[0][:, 0], sampled[1][:, 0])
    assert not torch.equal(sampled[0][:, -1], sampled[1][:, -1])
    assert held.pipeline.unet is held.module


# --- the kind of prediction -------------------------------------------------------------------------------------------


class Knowing:
    """A policy that predicts its kind perfectly, and says what it likes."""

    def __init__(self, held: DiffusionPolicy, says: str, does: str):
        self.path, self.does = type(held.path)(held.path.alphas_cumprod, says), does
        self.x0 = torch.randn(2, *held.latent_shape, generator=torch.Generator().manual_seed(2))

    def encode(self, media: Any) -> torch.Tensor:
        return self.x0

    def condition(self, prompts: Any) -> Condition:
        return Condition({})

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        alpha, sigma = (c.view(-1, 1, 1, 1) for c in self.path.alpha_sigma(t))
        noise = (x_t - alpha * self.x0) / sigma
        return {"epsilon": noise, "v": alpha * noise - sigma * self.x0, "sample": self.x0}[self.does]


@pytest.mark.parametrize("does", ["epsilon", "v", "sample"])
def test_a_wrong_prediction_type_is_found_on_data(does: str) -> None:
    held = policy("sd15")
    check_prediction_kind(Knowing(held, does, does), pictures(), ["a", "b"])
    wrong = "v" if does == "epsilon" else "epsilon"
    with pytest.raises(
        ValueError, match=rf"says it predicts {wrong}, .* nearest to {does} .*prediction_type.*model.check_kind: false"
    ):
        check_prediction_kind(Knowing(held, wrong, does), pictures(), ["a", "b"])


def test_pictures_unlike_all_that_a_model_knows_tell_no_kind() -> None:
    """No kind fits them: advice to correct a right config would break the model."""
    held = policy("sd15")
    lost = Knowing(held, "v", "epsilon")
    lost.predict = lambda x_t, t, cond: 0.1 * x_t  # type: ignore[method-assign]
    said = check_prediction_kind(lost, pictures(), ["a", "b"])
    assert "cannot be told on these pictures" in said and "model.check_kind: false" in said
    near = Knowing(held, "v", "epsilon")
    told = near.predict
    near.predict = lambda x_t, t, cond: 0.35 * told(x_t, t, cond)  # type: ignore[method-assign]
    assert "cannot be told" in check_prediction_kind(near, pictures(), ["a", "b"])
    assert check_prediction_kind(Knowing(held, "v", "v"), pictures(), ["a", "b"]) == ""


def test_libraries_say_the_same_once_and_the_like_a_few_times() -> None:
    sparing = Sparing()

    def says(text: str) -> bool:
        return sparing.filter(logging.LogRecord("diffusers.x", logging.WARNING, "", 0, text, (), None))

    long = [f"The following part of your input was truncated: {n}" for n in range(5)]
    assert [says(text) for text in [long[0], *long]] == [True, False, True, True, False, False]
    assert says("something else")
