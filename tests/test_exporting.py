"""What leaves a run: weights that plain diffusers loads, merged ones on request, a card without anything private."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from palate.config import CardSettings, LoraSettings, ModelSettings, Recipe
from palate.doors import exporting, judging, lookup
from palate.doors import run as training
from palate.evaluation import card
from palate.training import adapters
from palate.training.export import WEIGHTS, export
from tests import zoo
from tests.test_recipes import preferences
from tests.training.test_loras import make_lora, picture, shaken

RESULT = {
    "method": "diffusion_dpo",
    "seed": 7,
    "step": 40,
    "ended": "early stopping",
    "weights": "best, step 30",
    "warnings": ["the held-out loss is of only 3 rows"],
    "trained_on": {"rows": 12, "prompts": 4, "sha256": "0123456789abcdef" * 4},
    "prompts_trained_on": 1,
    "base": {"jpeg_size": 1.25},
    "tuned": {"jpeg_size": 2.5},
    "wins": {"reward": {"rate": 0.75, "ci95": [0.5, 1.0], "n": 8, "n_prompts": 4, "ties": 0.25}},
    "versions": {"palate": "0.1", "torch": "2.13.0+cpu"},
    "pairs": [{"prompt": "a secret prompt", "base": "x.png", "tuned": "y.png"}],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alice") / "sd15"
    zoo.build("sd15").save_pretrained(folder)
    return folder


LORA = LoraSettings(rank=2)


def finished(folder, name, *, adapter=None, lora=LORA):
    """A run's folder as training leaves it, of weights that were shaken instead of trained."""
    settings = ModelSettings(name=str(name), adapter=adapter, lora=lora, device="cpu")
    policy = lookup.load_policy(settings)
    shaken(adapters.trainable(policy).values(), seed=2, scale=0.1 if lora else 0.01)
    folder.mkdir()
    recipe = {
        "model": settings.model_dump(mode="json"),
        "algorithm": {"name": "diffusion_dpo", "beta_dpo": 1500},
        "data": {"path": "/home/alice/preferences", "held_out": 0.1},
        "output": str(folder),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    export(policy, folder)
    judging.write_json(folder / "result.json", RESULT)
    return policy


def plain(folder):
    return picture(DiffusionPipeline.from_pretrained(folder))


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, picture(finished(folder, model).pipeline)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_an_adapter_is_copied_with_its_card(run, model):
    folder, drawn = run
    out = exporting.export(folder)
    assert out == folder / "export"
    assert sorted(path.name for path in out.iterdir()) == ["README.md", WEIGHTS, "result.json"]
    assert {path.stat().st_mode & 0o666 for path in out.iterdir()} == {out.stat().st_mode & 0o666}
    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.load_lora_weights(out, adapter_name="aligned", weight_name=WEIGHTS)
    assert (picture(pipeline) == drawn).all()
    with pytest.raises(ValueError, match=r"export is there already: choose another --out"):
        exporting.export(folder)


@pytest.mark.parametrize("name", ["sd15", pytest.param("world:shapes", marks=pytest.mark.slow)])
def test_a_merged_model_draws_the_same_to_rounding(name, model, tmp_path):
    name = str(model) if name == "sd15" else name
    drawn = picture(finished(tmp_path / "run", name).pipeline)
    out = exporting.export(tmp_path / "run", tmp_path / "out", merge=True)
    again = plain(out)
    assert np.abs(again - drawn).max() < 1e-4 and not (drawn == plain(lookup.resolve_model(name))).all()
    assert not list(out.rglob("*lora*"))
    assert str(model) not in "".join(path.read_text() for path in out.rglob("*.json"))
    front = front_of(out)
    assert "base_model" not in front and "lora" not in front["tags"]


def test_a_merged_model_holds_the_lora_it_was_trained_on_top_of(model, tmp_path):
    parts = {"unet": ["to_q", "conv1"], "text_encoder": ["q_proj"]}
    own = make_lora(DiffusionPipeline.from_pretrained(model), tmp_path / "own", parts, seed=3)
    drawn = picture(finished(tmp_path / "run", model, adapter=str(own)).pipeline)
    assert np.abs(plain(exporting.export(tmp_path / "run", merge=True)) - drawn).max() < 1e-4
    apart = exporting.export(tmp_path / "run")
    pipeline = DiffusionPipeline.from_pretrained(model)
    with adapters.several_adapters():  # the card's own lines
        exec(loading(apart, str(model)), scope := {"torch": torch})
    assert (picture(scope["pipeline"]) == drawn).all() and pipeline is not scope["pipeline"]
    assert "without them it is another model" in (apart / card.CARD).read_text()


@pytest.mark.slow
def test_a_merged_model_is_stored_in_the_recipes_type(model, tmp_path):
    finished(tmp_path / "run", model)
    held = tmp_path / "run" / "config.yaml"
    held.write_text(held.read_text().replace("dtype: float32", "dtype: bfloat16"))
    (weights,) = (exporting.export(tmp_path / "run", merge=True) / "unet").glob("*.safetensors")
    assert {weight.dtype for weight in load_file(weights).values()} == {torch.bfloat16}


def test_all_weights_are_a_pipeline_merged_or_not(model, tmp_path):
    drawn = picture(finished(tmp_path / "run", model, lora=None).pipeline)
    for merge in (False, True):
        out = exporting.export(tmp_path / "run", tmp_path / f"out{merge}", merge=merge)
        assert (plain(out) == drawn).all() and "All weights of the denoiser" in (out / card.CARD).read_text()


def test_what_cannot_be_exported_is_refused_and_nothing_is_overwritten(run, tmp_path):
    with pytest.raises(ValueError, match="is no run's folder: it has no config"):
        exporting.export(tmp_path)
    shutil.copy(run[0] / "config.yaml", tmp_path)
    with pytest.raises(ValueError, match="has no adapter/ yet: let its training finish"):
        exporting.export(tmp_path)
    precious = tmp_path / "mine"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="mine is there already"):
        exporting.export(run[0], precious)
    assert (precious / "thesis.txt").read_text() == "years"


@pytest.mark.slow
def test_a_run_begins_from_a_run_and_leaves_all_that_is_needed(model, tmp_path, capsys):
    """By recipes alone: the second is held to the first, and judged against it."""
    evaluation = {"prompts": ["a hat", "a cat"], "scorers": {"jpeg_size": -1.0}, "n": 1, "num_inference_steps": 2}
    sampling = {"num_inference_steps": 2, "guidance_scale": 3.0, "prompts_per_round": 2, "k": 2}
    recipe = {
        "model": {"name": str(model), "device": "cpu", "lora": {"rank": 2}},
        "algorithm": {"name": "d3po", "reference": "base"},
        "rollout": {"prompts": ["a red cat", "a blue dog"], "scorers": {"jpeg_size": -1.0}, **sampling},
        "training": {"max_steps": 1, "batch_size": 2, "learning_rate": 0.02},
        "evaluation": evaluation,
        "output": str(tmp_path / "first"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    first = training.train(path)
    again = [f"model.adapter={first}", f"output={tmp_path / 'second'}", "model.lora.rank=3"]
    second = training.train(path, again)
    capsys.readouterr()
    row = json.loads((second / "metrics.jsonl").read_text().splitlines()[1])
    assert row["loss"] == pytest.approx(np.log(2), abs=1e-6)
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    assert results[1]["base"]["jpeg_size"] == pytest.approx(results[0]["tuned"]["jpeg_size"], abs=0.02)
    assert len(results[0]["trained_on"]["sha256"]) == 64 and results[0]["trained_on"]["prompts"] == 2
    assert front_of(second / "adapter")["tags"] == ["palate", "lora", "d3po"]
    (first / "adapter" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="cannot be read as a LoRA"):
        training.train(path, [*again[:1], f"output={tmp_path / 'third'}"])
    arm = lookup.load_arm(str(second))  # needs nothing of the first
    assert adapters.base_adapters(arm.module) == ["base"]


@pytest.mark.slow
def test_stored_preferences_are_learnt_on_top_of_a_lora_that_changes_how_prompts_are_read(model, tmp_path):
    """The text encoder carries a part of it, leaves while training goes on, and is read again for the pictures."""
    parts = {"unet": ["to_q"], "text_encoder": ["q_proj"]}
    own = make_lora(DiffusionPipeline.from_pretrained(model), tmp_path / "own", parts, seed=3)
    recipe = {
        "model": {"name": str(model), "adapter": str(own), "device": "cpu", "lora": {"rank": 2}, "check_kind": False},
        "algorithm": {"name": "diffusion_dpo", "beta_dpo": 100},
        "data": {"path": str(preferences(tmp_path / "data", 16, 2)), "held_out": 0, "cache": str(tmp_path / "cache")},
        "training": {"max_steps": 2, "batch_size": 2},
        "evaluation": {"prompts": ["a hat"], "scorers": {"jpeg_size": 1}, "n": 1, "num_inference_steps": 2},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder = training.train(tmp_path / "recipe.yaml")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert next(row["loss"] for row in rows if "loss" in row) == pytest.approx(np.log(2), rel=1e-6)
    facts = json.loads((folder / "adapter" / card.FACTS).read_text())
    assert facts["trained_on"]["rows"] == 4
    arm = lookup.load_arm(str(folder))
    pipeline = DiffusionPipeline.from_pretrained(model)
    with adapters.several_adapters():
        exec(loading(folder / "adapter", str(model)), scope := {})
    assert (picture(scope["pipeline"]) == picture(arm.pipeline)).all()
    assert not (picture(pipeline) == picture(arm.pipeline)).all()


# --- the card ---------------------------------------------------------------------------------------------------------


def front_of(folder):
    return yaml.safe_load((folder / card.CARD).read_text().split("---\n")[1])


def loading(folder, base):
    """The lines of the card that load it, with the places filled in."""
    code = re.search(r"```python\n(.*?)```", (folder / card.CARD).read_text(), re.DOTALL)[1]
    return code.replace("the base model", base).replace("this folder", str(folder))


def test_every_number_of_the_card_stands_in_the_file_beside_it(run):
    folder, _ = run
    text = card.write(folder, folder / "adapter").read_text()
    facts = json.loads((folder / "adapter" / card.FACTS).read_text())
    rows = re.findall(r"^\| (.+?) \| (\S+?)(?: .*)? \| `result.json: (.+?)` \|$", text, re.MULTILINE)
    assert len(rows) == 7
    for _, shown, key in rows:
        value = facts
        for part in key.split("."):
            value = value[part]
        assert float(shown) == pytest.approx(value) and value == _at(RESULT, key)
    assert "| wins over the base by reward, ties half | 0.750 (95% interval 0.500 to 1.000) |" in text
    assert "trained on 1 of the prompts that it is judged on" in text and "The held-out loss is of only 3 rows." in text
    assert f"- sha256: {RESULT['trained_on']['sha256']} " in text and "secret prompt" not in text
    assert "pairs" not in facts


def _at(tree, key):
    for part in key.split("."):
        tree = tree[part]
    return tree


def test_a_licence_is_told_or_said_to_be_missing(run, tmp_path):
    folder, _ = run
    card.write(folder, folder / "adapter")
    assert front_of(folder / "adapter")["license"] == "other"
    assert "Nobody has stated one" in (folder / "adapter" / card.CARD).read_text()
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    recipe["model"]["name"] = "stabilityai/stable-diffusion-xl-base-1.0"
    stated = CardSettings(
        license="openrail++", license_link="https://example.org/l", description="Draws hats.", data="Hats."
    )
    recipe["card"] = stated.model_dump()
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "config.yaml").write_text(yaml.safe_dump(recipe))
    text = card.write(copy, copy / "adapter").read_text()
    front = front_of(copy / "adapter")
    assert front["license"] == "openrail++" and front["license_link"] == "https://example.org/l"
    assert (
        front["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0" and front["base_model_relation"] == "adapter"
    )
    assert front["library_name"] == "diffusers" and front["tags"] == ["palate", "lora", "diffusion_dpo"]
    assert "Draws hats." in text and "Hats." in text and "openrail++, as whoever trained it says" in text


HOSTILE = {
    "model": {"name": "/home/alice/models/unreleased", "adapter": "C:\\Users\\alice\\lora", "device": "cuda:3"},
    "algorithm": {"name": "my_company.alice.secret_dpo", "note": "hf_abcdefghijklmnopqrstuvwxyz012345"},
    "rollout": {
        "prompts": ["a product nobody knows of", "another"],
        "scorers": {"/opt/alice/scorer.py": 1.0, "jpeg_size": 2.0, "https://bob:hunter2@judge.local/v1": 0.5},
    },
    "evaluation": {"prompts": "~alice/prompts.txt", "scorers": {"sk-live-0123456789abcdef": 1.0}},
    "training": {"seed": 3, "api_key": "AKIAIOSFODNN7EXAMPLE"},
    "card": {
        "license": "mit (ask alice@example.org)",
        "description": "Made in /home/alice/work by Alice, token: ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "data": "From \\\\server\\share\\x, $HOME/y and ../up",
    },
    "output": "/home/alice/runs/first",
}


def test_nothing_private_leaves(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "mallory")
    folder = tmp_path / "mallory" / "run"
    shutil.copytree(run[0], folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(HOSTILE))
    result = RESULT | {
        "warnings": ["row 3 of /home/alice/x is bad, says Mallory"],
        "title": "/home/alice",
        "wins": {"/opt/alice/scorer.py": {"rate": 0.5, "ci95": [None, None], "n": 1, "ties": 0.0}},
        "base": {"hf_abcdefghijklmnopqrstuvwxyz": 1.0},
        "data": {"a": "/home/alice/models"},
    }
    judging.write_json(folder / "result.json", result)
    card.write(folder, folder / "adapter")
    left = "".join((folder / "adapter" / name).read_text() for name in (card.CARD, card.FACTS))
    for secret in (
        "alice", "Alice", "mallory", "Mallory", "/home", "/opt", str(tmp_path), "hf_", "ghp_", "sk-live", "AKIA",
        "hunter2", "bob", "server", "$HOME", "../", "~", "C:\\", "example.org", "cuda:3", "unreleased",
        "nobody knows of", "first",
    ):  # fmt: skip
        assert secret not in left, (secret, left)
    assert "jpeg_size: 2.0" in left and "(2 prompts)" in left and "beta_dpo" not in left
    yaml.safe_load(left.split("---\n")[1])


def test_what_lay_here_is_no_name_on_a_hub_wherever_the_card_is_made(run, tmp_path, monkeypatch):
    """`lab/pairs` beside the recipe looks like a data set of the lab's."""
    places = {"model": {"name": "lab/base"}, "data": {"path": "lab/pairs"}, "evaluation": {"prompts": "lab/few.txt"}}
    (tmp_path / "recipes" / "lab" / "pairs").mkdir(parents=True)
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "few.txt").write_text("a hat")
    monkeypatch.chdir(tmp_path)
    scored = {"evaluation": {"prompts": "lab/few.txt", "scorers": {"jpeg_size": 1}}}
    recipe = Recipe.model_validate({**places, **scored, "algorithm": {"name": "sft"}, "output": "runs/x"})
    assert training.local_places(recipe, tmp_path / "recipes") == ["data.path", "evaluation.prompts"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    (copy / "config.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    judging.write_json(copy / "result.json", RESULT | {"local": ["data.path", "evaluation.prompts"]})
    text = card.write(copy, copy / "adapter").read_text()
    assert "lab/pairs" not in text and "few.txt" not in text and "lab/base" in text and "preferences: (a local" in text
    assert "local:" not in (copy / "adapter" / card.FACTS).read_text()


def test_the_card_of_two_experts_loads_both(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    (copy / "adapter" / "transformer_2").mkdir()
    shutil.copy(copy / "adapter" / WEIGHTS, copy / "adapter" / "transformer_2")
    text = card.write(copy, copy / "adapter").read_text()
    assert f'transformer_2.load_lora_adapter("this folder", weight_name="transformer_2/{WEIGHTS}", ' in text


def test_a_run_that_was_not_judged_says_so(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    (copy / "result.json").write_text("{}")
    assert "It was not judged" in card.write(copy, copy / "adapter").read_text()
    (copy / "result.json").unlink()
    assert "It was not judged" in card.write(copy, copy / "adapter").read_text()


def test_what_the_card_reads_are_fields_of_a_recipe():
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    for place in card._PLACES:
        section, _, key = place.partition(".")
        kinds = [sections[section], *getattr(sections[section], "__args__", ())]
        assert any(key in getattr(kind, "model_fields", {}) for kind in kinds), place
