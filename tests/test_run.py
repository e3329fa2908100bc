"""Whole commands on a tiny pipeline folder: train offline and online, resume, sample, compare, and what goes wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from palate import durable
from palate.algorithms import diffusion_dpo
from palate.datasets import parquet
from palate.doors import drawing, encoding, run
from palate.models.diffusion import DiffusionPolicy
from palate.records import Medium, Preference
from tests import gaming, zoo

PROMPTS = ["a red cat", "a blue dog", "a green bird", "a hat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "sd15"
    zoo.build("sd15").save_pretrained(folder)
    return folder


def picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    side = zoo_side()
    pixels = np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((side // 4, side // 4, 1))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def zoo_side() -> int:
    pipeline = zoo.build("sd15")
    return pipeline.unet.config.sample_size * pipeline.vae_scale_factor


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "data"
    nan = float("nan")
    rows = [
        Preference(
            prompt=PROMPTS[i % 4] + f" {i}",
            media=(Medium("image/png", picture(2 * i)), Medium("image/png", picture(2 * i + 1))),
            prefer=((nan, 1.0), (0.0, nan)),
        )
        for i in range(12)
    ]
    parquet.write(folder, rows)
    return folder


def recipe_for(tmp_path: Path, model: Path, **sections) -> Path:
    recipe = {
        "model": {"name": str(model), "device": "cpu", "lora": {"rank": 2}, "check_kind": False},
        "training": {"max_steps": 3, "batch_size": 4, "checkpoint_every": 2, "learning_rate": 1e-3},
        "output": str(tmp_path / "run"),
    }
    for name, values in sections.items():
        recipe[name] = recipe.get(name, {}) | values if isinstance(values, dict) else values
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def offline(tmp_path: Path, model: Path, pairs: Path, **more) -> Path:
    evaluation = {"prompts": PROMPTS, "scorers": {"jpeg_size": 1}, "n": 1, "num_inference_steps": 2}
    return recipe_for(
        tmp_path,
        model,
        algorithm={"name": "diffusion_dpo", "beta_dpo": 100},
        data={"path": str(pairs), "held_out": 0.2},
        evaluation=evaluation,
        **more,
    )


def online(tmp_path: Path, model: Path, max_steps: int, judged_on: list[str], **rollout) -> Path:
    base = {"prompts": PROMPTS, "scorers": {"jpeg_size": -1.0}, "prompts_per_round": 1, "k": 2}
    return recipe_for(
        tmp_path,
        model,
        algorithm={"name": "d3po"},
        rollout={**base, "num_inference_steps": 2, **rollout},
        training={"max_steps": max_steps},
        evaluation={"prompts": judged_on, "scorers": {"jpeg_size": 1}, "n": 1, "num_inference_steps": 2},
    )


def test_an_offline_run_leaves_all_that_was_promised(tmp_path, model, pairs, capsys):
    recipe = offline(tmp_path, model, pairs, training={"evaluate_every": 2})
    folder = run.train(recipe)
    result = json.loads((folder / "result.json").read_text())
    assert {"win_rate", "win_rate_ci95", "base", "tuned", "method", "seed"} <= result.keys()
    assert result["prompts_trained_on"] == 0
    few, verdict = result["warnings"]
    lines = capsys.readouterr().out.splitlines()
    assert few.startswith("the held-out loss is of only") and verdict.startswith("training did not help")
    assert lines[-2:] == [f"warning: {few}", f"warning: {verdict}"]
    assert not any("Trained on" in line for line in lines)
    page = (folder / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and "Trained on" not in page
    for name in ("config.yaml", "metrics.jsonl", "timing.jsonl", "samples/step_000000.png", "samples/step_000002.png"):
        assert (folder / name).is_file(), name
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["step"] == 1)
    assert first["loss"] == pytest.approx(np.log(2), rel=1e-6)

    plain = zoo.build("sd15").__class__.from_pretrained(model)  # plain diffusers, no Palate
    plain.load_lora_weights(folder / "adapter")

    capsys.readouterr()
    assert run.train(recipe) == folder
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"begun with another recipe: training.seed: 0 -> 1"):
        run.train(recipe, ["training.seed=1"])


def test_a_method_that_cannot_train_the_model_is_refused_before_encoding(tmp_path, model, pairs, monkeypatch):
    monkeypatch.setattr(encoding, "stored", lambda *_, **__: pytest.fail("rows were encoded"))
    recipe = offline(tmp_path, model, pairs)
    options = yaml.safe_load(recipe.read_text()) | {"algorithm": {"name": "flow_dpo"}}
    recipe.write_text(yaml.safe_dump(options))
    with pytest.raises(ValueError, match=r"recipe.yaml: flow_dpo is for models that predict a velocity"):
        run.train(recipe)
    assert not (tmp_path / "run").exists()


def test_an_online_run_with_only_comparisons(tmp_path, model):
    recipe = online(tmp_path, model, 2, PROMPTS, prompts_per_round=2, num_inference_steps=3, guidance_scale=3.0)
    folder = run.train(recipe, ["training.batch_size=6", "evaluation=null"])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert rows[0]["samples/jpeg_size"] < 0


def check_said(folder: Path, out: str, known: int) -> None:
    assert json.loads((folder / "result.json").read_text())["prompts_trained_on"] == known
    said = f"Trained on {known} of the prompts"
    assert out.count(f"warning: {said}") == 1 and "take them out of evaluation.prompts" in out
    assert out.index("warning") < out.index("done:")
    assert said in (folder / "report.html").read_text()


def test_prompts_that_were_trained_on_and_are_judged_on_are_counted(tmp_path, model, pairs, capsys):
    recipe = offline(tmp_path, model, pairs, training={"max_steps": 1})
    known = "['a red cat 0', 'A  Blue Dog 1', 'a red cat', 'a hat 3']"
    folder = run.train(recipe, [f"evaluation.prompts={known}", "evaluation.max_prompts=3"])
    check_said(folder, capsys.readouterr().out, 2)


def test_prompts_of_rollouts_count_as_trained_on(tmp_path, model, capsys):
    recipe = online(tmp_path, model, 1, [PROMPTS[0], "a new one"])
    check_said(run.train(recipe), capsys.readouterr().out, 1)


def test_full_fine_tuning_exports_a_pipeline_folder(tmp_path, model, pairs):
    folder = run.train(offline(tmp_path, model, pairs), ["model.lora=null"])
    assert DiffusionPolicy.load(folder / "model").latent_shape == DiffusionPolicy.load(model).latent_shape


def test_all_pictures_are_drawn_in_batches_of_the_size_asked_for(tmp_path, model, pairs, monkeypatch):
    seen, generate = [], DiffusionPolicy.generate

    def counting(self, prompts, *args, **options):
        seen.append(len(prompts))
        return generate(self, prompts, *args, **options)

    monkeypatch.setattr(DiffusionPolicy, "generate", counting)
    run.train(offline(tmp_path, model, pairs), ["evaluation.batch_size=3", "training.max_steps=1"])
    assert set(seen) == {3, 1}


def test_a_second_run_on_a_live_folder_touches_nothing(tmp_path, model, pairs, monkeypatch):
    recipe = offline(tmp_path, model, pairs)
    monkeypatch.setattr(run.lookup, "load_policy", lambda *_: pytest.fail("a model was loaded"))
    folder = tmp_path / "run"
    with durable.locked(folder):
        (folder / "config.yaml").write_text("the first's\n")
        with pytest.raises(OSError, match=r"run is in use by another run"):
            run.train(recipe, ["training.seed=7"])
    assert (folder / "config.yaml").read_text() == "the first's\n"


def test_the_resolved_recipe_holds_every_option(tmp_path, model, pairs, monkeypatch):
    recipe = offline(tmp_path, model, pairs, training={"max_steps": 1})
    folder = run.train(recipe, ["evaluation=null"])
    held = yaml.safe_load((folder / "config.yaml").read_text())["algorithm"]
    assert held == {"name": "diffusion_dpo", **diffusion_dpo.Config(beta_dpo=100).model_dump(mode="json")}
    run.train(recipe, ["evaluation=null", "algorithm.beta_dpo=1e2"])  # the same number
    run.train(folder / "config.yaml")  # the same recipe

    class Config(diffusion_dpo.Config):
        prompt_dropout: float = 0.3

    monkeypatch.setattr(diffusion_dpo, "Config", Config)
    with pytest.raises(ValueError, match=r"begun with another recipe: algorithm.prompt_dropout: 0.2 -> 0.3"):
        run.train(recipe, ["evaluation=null"])


def test_an_online_run_is_evaluated_on_the_way(tmp_path, model):
    folder = run.train(online(tmp_path, model, 2, ["a new one"]))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "evaluation/reward" in row] == [0, 1, 2]
    assert (folder / "samples" / "step_000001.png").is_file()


def test_a_run_whose_reward_is_gamed_is_stopped_and_keeps_the_best_by_the_judge_held_out(tmp_path, model, capsys):
    """The taste rises until the third look and falls from there."""
    recipe = online(tmp_path, model, 9, gaming.PROMPTS)
    folder = run.train(
        recipe,
        [
            "rollout.scorers={tests.gaming:scorer/reward: 1}",
            "evaluation.scorers={tests.gaming:scorer: 1}",
            "evaluation.guard=stop",
            "evaluation.batch_size=16",
            "training.evaluate_every=1",
        ],
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["guard/alarm"] == 1 and rows[-1]["step"] < 9
    result = json.loads((folder / "result.json").read_text())
    assert (result["ended"], result["weights"]) == ("guard", "best, step 2"), result
    out = capsys.readouterr().out
    assert "tests.gaming:scorer.reward rose while taste fell" in out and "kept: best, step 2 of" in out


def test_samples_are_resumed_and_do_not_depend_on_the_batch(tmp_path, model):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\n\na blue dog\n")
    keep = {"k": 2, "seed": 3, "num_inference_steps": 2}
    whole = drawing.sample(str(model), prompts, out=tmp_path / "whole", batch_size=4, **keep)
    names = sorted(path.name for path in whole.glob("*.png"))
    assert names == ["00000-0.png", "00000-1.png", "00001-0.png", "00001-1.png"]
    parts = drawing.sample(str(model), prompts, out=tmp_path / "parts", batch_size=1, **keep)
    (parts / names[2]).unlink()
    drawing.sample(str(model), prompts, out=tmp_path / "parts", batch_size=3, **keep)
    for name in names:
        a, b = (np.asarray(Image.open(folder / name), int) for folder in (whole, parts))
        assert np.abs(a - b).max() <= 1


def test_errors_name_the_thing_and_the_mend(tmp_path, model, pairs, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no demo has left its preferences
    missing = tmp_path / "nowhere.txt"
    with pytest.raises(ValueError, match=r"prompt file .*nowhere.txt does not exist: write one prompt a line"):
        drawing.sample(str(model), missing, k=1, out=tmp_path / "x", seed=0)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty.txt holds no prompts"):
        drawing.sample(str(model), empty, k=1, out=tmp_path / "x", seed=0)
    with pytest.raises(OSError, match=r"has no model_index.json; give the folder"):
        drawing.sample(str(tmp_path), PROMPTS, k=1, out=tmp_path / "x", seed=0)
    recipe = recipe_for(tmp_path, model, algorithm={"name": "d3po"}, data={"path": str(pairs)})
    with pytest.raises(ValueError, match="d3po is an online method: give it the section 'rollout'"):
        run.train(recipe)
    with pytest.raises(ValueError, match=r"recipe.yaml: data.path is demo/preferences, .*; `make demo` writes it"):
        run.train(offline(tmp_path, model, Path("demo/preferences")))
    with pytest.raises(ValueError, match=r"recipe.yaml: data.path is nowhere, and there is no such folder; give"):
        run.train(offline(tmp_path, model, Path("nowhere")))
    with pytest.raises(ValueError, match=r"unknown key 'algorithm.beta_dop'; did you mean 'algorithm.beta_dpo'"):
        run.train(offline(tmp_path, model, pairs), ["algorithm.beta_dop=3"])


def test_a_corrupt_picture_is_named_and_stops_before_training(tmp_path, model):
    nan = float("nan")
    good, cut = Medium("image/png", picture(0)), Medium("image/png", picture(1)[:60])
    parquet.write(tmp_path / "bad", [Preference("a cat", (good, cut), ((nan, 1.0), (0.0, nan)))])
    recipe = offline(tmp_path, model, tmp_path / "bad")
    with pytest.raises(ValueError, match=r"row 0, candidate 1: not a readable PNG"):
        run.train(recipe)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_rollout_that_training_would_not_recognise_is_refused(model):
    import torch

    from palate import sampling
    from palate.algorithms import d3po
    from palate.config import ModelSettings, TrainingSettings
    from palate.doors import assembly, lookup

    policy = lookup.load_policy(ModelSettings(name=str(model), device="cpu"))
    made = sampling.rollout(
        policy, ["a", "a"], ["0", "1"], seed=0, num_inference_steps=3, guidance_scale=3.0, eta=1.0, shared_noise=True
    )
    assert torch.equal(made.x[0, 0], made.x[1, 0]) and not torch.equal(made.x[0, 1], made.x[1, 1])
    config = d3po.Config()
    batch = d3po.prepare(made, {"r": torch.tensor([0.0, 1.0])}, d3po.init(policy, config), config)
    assert assembly.check_ratio(policy, batch, config, TrainingSettings()) <= 1e-5
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.mul_(1.01)
    with pytest.raises(RuntimeError, match="log ratio"):
        assembly.check_ratio(policy, batch, config, TrainingSettings())


def test_a_stated_kind_that_pictures_contradict_is_refused(tmp_path, pairs):
    """The shipped model predicts noise; told that it predicts v, it replays perfectly and must still not be trained."""
    import shutil

    from palate.worlds import shapes

    folder = tmp_path / "said-to-be-v"
    shutil.copytree(shapes.weights_dir(), folder)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"epsilon"', '"v_prediction"'))
    data = tmp_path / "data"
    from palate.worlds.shapes import data as world

    nan = float("nan")
    scenes, pictures = world.dataset(12, 0)
    encoded = []
    for pixels in pictures:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded.append(Medium("image/png", buffer.getvalue()))
    rows = [
        Preference(world.caption(scenes[i]), (encoded[i], encoded[i + 1]), ((nan, 1.0), (0.0, nan)))
        for i in range(0, 12, 2)
    ]
    parquet.write(data, rows)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {"name": str(folder), "device": "cpu"},
                "algorithm": {"name": "diffusion_dpo"},
                "data": {"path": str(data)},
                "output": str(tmp_path / "run"),
            }
        )
    )
    with pytest.raises(ValueError, match="epsilon"):
        run.train(path)


def test_two_rounds_of_one_prompt_start_from_different_noise():
    import torch

    from palate.training.online import Online
    from tests.toys import ToyDenoiser, kernel_of, roll_out

    policy, seeds = ToyDenoiser(), []

    def rollout(prompts, ids, *, seed):
        seeds.append(seed)
        return roll_out(policy, prompts, seed)

    from palate import sampling

    def prepare(made, feedback, state):
        candidate, step = sampling.transitions_of(made, torch.arange(2))
        return sampling.transition_batch(made, candidate[:, None], step, torch.ones(len(step), 1))

    source = Online(
        ["a"], rollout, lambda p, m: {"r": [0.0] * len(p)}, prepare, kernel_of(policy),
        k=2, prompts_per_round=1, batch_size=100,
    )  # fmt: skip
    from palate.models.contracts import State

    source.next(State())
    source.next(State())
    assert len(seeds) == 2 and seeds[0] != seeds[1]


@pytest.mark.slow
def test_two_processes_of_torchrun_are_one(tmp_path, model, pairs):
    """The command itself under torchrun with gloo: the same losses as alone, to 1e-5."""
    import subprocess
    import sys

    recipe = offline(tmp_path, model, pairs, training={"evaluate_every": 2})
    alone = run.train(recipe, [f"output={tmp_path / 'alone'}"])
    together = tmp_path / "together"
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [torchrun, "--nproc_per_node", "2", "-m", "palate", "train", recipe, f"output={together}"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=240)
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (alone, together)
    ]
    assert len(rows[0]) == len(rows[1]) > 2
    for one, two in zip(*rows, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() & {"loss", "validation/loss"}:
            assert two[name] == pytest.approx(one[name], rel=1e-5), name
