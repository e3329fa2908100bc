"""What a recipe takes is known before anything is loaded, and near to what it then takes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import yaml

from palate.config import ConfigError, Recipe
from palate.doors import estimate
from palate.models import hollow
from palate.models.diffusion import DiffusionPolicy
from tests import zoo


def recipe(name="world:shapes", **sections) -> Recipe:
    made = {
        "model": {"name": str(name), "device": "cpu", **sections.get("model", {})},
        "algorithm": {"name": "diffusion_dpo"},
        "data": {"path": "somewhere", "held_out": 0.0, **sections.get("data", {})},
        "training": {"batch_size": 8, **sections.get("training", {})},
        "output": "run",
    }
    return Recipe.model_validate(made)


@pytest.fixture(scope="module")
def hollows():
    return estimate.Hollows()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "sd15"
    zoo.build("sd15").save_pretrained(folder)
    return folder


def test_weights_are_counted_and_none_is_read(hollows, tiny, monkeypatch):
    from safetensors import torch as files

    monkeypatch.setattr(files, "load_file", lambda *_, **__: pytest.fail("weights were read"))
    found = estimate.estimate(recipe(tiny, model={"lora": None}), hollows)
    stored = (tiny / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert found.lines["denoiser"] == found.lines["gradients"] == found.lines["reference"]
    assert found.lines["optimiser"] == 2 * found.lines["denoiser"] and "moving average" not in found.lines
    assert 0.5 * stored <= found.lines["denoiser"] <= stored  # which has a header, long beside weights so small
    assert found.rows == 16 and found.flops > 0


def test_options_take_what_they_say(hollows, tiny):
    def of(**sections):
        return estimate.estimate(recipe(tiny, **sections), hollows)

    options = {"batch_size": 4, "ema_decay": 0.9, "optimiser": "adamw_8bit"}
    plain, small = of(training=options), of(training={**options, "micro_batch_size": 1})
    assert small.lines["activations"] < 0.5 * plain.lines["activations"] and small.flops == plain.flops
    assert plain.lines["moving average"] == plain.lines["adapter"] == 2 * plain.lines["optimiser"]
    again = of(training={"batch_size": 4, "gradient_checkpointing": True})
    assert again.lines["activations"] < plain.lines["activations"] and again.flops > plain.flops
    full = {"model": {"lora": None}, "training": {"batch_size": 4}}
    asked, live = of(**full, data={"reference_draws": 2}), of(**full)
    assert "reference" not in asked.lines and asked.flops < 0.8 * live.flops


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_any_pipeline_is_followed_by_its_own_call(tmp_path, name):
    zoo.build(name).save_pretrained(tmp_path)
    found = estimate.estimate(recipe(tmp_path, model={"call": zoo.CALLS[name], "lora": {"rank": 2}}))
    assert found.lines["activations"] > 0 and found.encoding > found.lines["denoiser"]


def test_a_model_that_is_not_here_says_how_to_look_at_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe("someone/some-model").model_dump(mode="json", exclude_none=True)))
    with pytest.raises(ConfigError, match=r"some-model is not on this disk: .* by `palate doctor .*.yaml --fetch-c"):
        estimate.of_recipe(path)


def test_a_hub_out_of_reach_is_said_to_be_in_one_line(tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    def down(*_, **__):
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", down)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe("someone/some-model").model_dump(mode="json", exclude_none=True)))
    with pytest.raises(ConfigError, match=r"recipe.yaml: .*some-model: .* the hub cannot be reached \(.*not known"):
        estimate.of_recipe(path, fetch=True)
    with pytest.raises(FileNotFoundError, match=r"some-model: there is no such folder here, and the hub cannot be r"):
        DiffusionPolicy.load("someone/some-model")


def test_a_model_that_the_method_cannot_train_is_refused(tmp_path, tiny):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tiny).model_dump(mode="json", exclude_none=True)))
    with pytest.raises(ConfigError, match=r"recipe.yaml: flow_dpo is for models that predict a velocity"):
        estimate.of_recipe(path, ["algorithm.name=flow_dpo"])


def test_small_things_are_told_in_a_unit_that_shows_them():
    assert estimate.size_of(3 * 2**20).strip() == "3.00 MiB" and estimate.size_of(3 * 2**30).strip() == "3.00 GiB"


def test_the_table_names_what_would_take_less(capsys, hollows, tiny, monkeypatch):
    less = ("training.gradient_checkpointing=true", "data.reference_draws=4")
    monkeypatch.setattr(estimate, "_TRIALS", {name: estimate._TRIALS[name] for name in less})
    estimate.show(recipe(tiny, model={"lora": None}), hollows=hollows)
    said = capsys.readouterr().out
    assert "16 network rows in a pass" in said and "TFLOP" in said
    assert all(override in said for override in less)


MEASURED = """
from palate.memory import peak_bytes
from palate.doors import lookup
from palate.config import ModelSettings
from benchmarks import speed
policy = lookup.load_policy(ModelSettings(name="world:shapes", device="cpu"))
batch, draw = speed.pairs(policy, 2)
speed.trainer_seconds(policy, "diffusion_dpo", speed.Same(batch, draw))
before = peak_bytes()
batch, draw = speed.pairs(policy, 48)
speed.trainer_seconds(policy, "diffusion_dpo", speed.Same(batch, draw))
print(peak_bytes() - before)
"""


@pytest.mark.slow
def test_activations_are_within_a_factor_of_two_of_what_is_measured(hollows):
    """What a process takes holds the workspaces of convolutions and the gaps between what it has freed, too."""
    out = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True).stdout
    measured = int(out.splitlines()[-1])
    large, small = (estimate.estimate(recipe(training={"batch_size": n}), hollows) for n in (48, 2))
    expected = large.lines["activations"] - small.lines["activations"]
    assert 1 / 2 <= expected / measured <= 3 / 2, (expected, measured)


def test_live_bytes_rise_and_fall():
    mode = hollow.fake_mode()

    def work():
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b.view(10, 100)  # no memory of its own
        return c * 2

    assert hollow.followed(work, [], mode)[0] == 8000
