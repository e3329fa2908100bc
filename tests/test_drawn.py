"""A comparison that is killed goes on where it was, to the same numbers; other weights, prompts and settings show."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from palate import kinds, sampling
from palate.doors import comparing, drawn, fingerprints, lookup
from tests import zoo
from tests.training import forks

DIES = {"drawing": (sampling, "sample", 5), "writing": (kinds, "keep", 4), "scoring": (drawn._Kept, "note", 2)}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("base", 0), ("other", 1)):
        pipeline = zoo.build("sd15")
        torch.manual_seed(seed)
        for weight in pipeline.unet.parameters():
            torch.nn.init.normal_(weight, std=0.05)
        pipeline.save_pretrained(folder / name)
    return [str(folder / "base"), str(folder / "other")]


@pytest.fixture(scope="module")
def compare(models, tmp_path_factory):
    """Compares the two on three captions, two seeds each, two samples at once: six batches."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a large red circle on white\na small blue star on grey\na small red star on white\n")
    keep = {"prompts": prompts, "scorers": ["jpeg_size"], "held_out": ["world:shapes/alignment"], "n": 2, "seed": 0}
    keep |= {"num_inference_steps": 2, "batch_size": 2}

    def run(out: Path, **changes) -> dict:
        comparing.compare(models, **{"out": out, **keep, **changes})
        return json.loads((out / "result.json").read_text())

    return run


@pytest.fixture(scope="module")
def straight(compare, tmp_path_factory) -> dict:
    return compare(tmp_path_factory.mktemp("straight") / "out")


def killed(compare, out: Path, owner, name: str, number: int) -> None:
    """Runs it as far as the n-th call of something, and there kill -9."""

    def work() -> None:
        honest, calls = getattr(owner, name), []

        def dying(*args, **how):
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return honest(*args, **how)

        setattr(owner, name, dying)
        compare(out)

    assert forks.in_child(work) == -signal.SIGKILL
    assert not (out / "result.json").exists()


@pytest.mark.parametrize(
    "at", ["drawing", *(pytest.param(at, marks=pytest.mark.slow) for at in ("writing", "scoring"))]
)
def test_killed_it_goes_on_to_the_same_numbers(at, compare, straight, tmp_path, monkeypatch):
    killed(compare, out := tmp_path / "out", *DIES[at])
    before = {path: path.stat().st_mtime_ns for path in out.glob("drawn/*/*.png")}
    lines = [line for path in out.glob("drawn/*/*.jsonl") for line in path.read_text().splitlines()]
    rows = sum(len(json.loads(line)["rows"]) for line in lines)
    sizes, honest = [], sampling.sample
    monkeypatch.setattr(sampling, "sample", lambda *a, **how: sizes.append(len(a[1])) or honest(*a, **how))
    assert compare(out) == straight
    assert rows == {"drawing": 8, "writing": 2, "scoring": 2}[at] and sum(sizes) == 12 - rows
    untouched = [path for path, time in before.items() if path.stat().st_mtime_ns == time]
    assert len(untouched) == rows and not list(out.rglob("*.partial"))


@pytest.mark.slow
def test_killed_again_and_again(compare, straight, tmp_path):
    for number in (1, 3, 2):
        killed(compare, tmp_path / "out", sampling, "sample", number)
    assert compare(tmp_path / "out") == straight


def test_what_is_done_is_not_loaded_and_what_was_cut_off_is_drawn_anew(
    compare, straight, models, tmp_path, monkeypatch
):
    compare(out := tmp_path / "out")
    (out / "result.json").unlink()
    load, loaded = lookup.load_arm, []
    monkeypatch.setattr(lookup, "load_arm", lambda model, call: loaded.append(model) or load(model, call))
    assert compare(out) == straight and loaded == []  # what the scores are of is known without asking a scorer
    (out / "result.json").unlink()
    held = out / "drawn" / "1" / drawn.SCORES
    held.write_bytes(held.read_bytes()[:-9])  # the power went as the last line was written
    (out / "drawn" / "0" / "00001-0.png").write_bytes(b"half")
    assert compare(out) == straight and loaded == models
    assert len([json.loads(line) for line in held.read_text().splitlines()]) == 3


def test_another_setting_or_other_weights_are_refused_by_name(compare, models, tmp_path, monkeypatch):
    killed(compare, out := tmp_path / "out", sampling, "sample", 2)
    monkeypatch.setattr(lookup, "load_arm", lambda *_: pytest.fail("a model was loaded"))
    for change, said in (
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"n": 3}, "n: 2 -> 3"),
        ({"num_inference_steps": 3}, "num_inference_steps: 2 -> 3"),
        ({"scorers": ["world:shapes/style"]}, r"scorers: \[jpeg_size\] -> \['world:shapes/style'\]"),
        ({"call": {"height": 32}}, r"call: \(absent\) -> {height: 32}"),
    ):
        with pytest.raises(ValueError, match=f"out holds other comparisons: {said}; choose another --out"):
            compare(out, **change)
    weights = Path(models[1]) / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match=r"weights\..*other: [0-9a-f]{16} -> [0-9a-f]{16}; choose another"):
            compare(out)
    finally:
        weights.write_bytes(whole)


def test_a_model_is_known_by_what_it_is_loaded_from(models, tmp_path, monkeypatch):
    known = fingerprints.of_model(models[0])
    shutil.copytree(models[0], tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a card")
    assert fingerprints.of_model(str(tmp_path / "copy")) == known != fingerprints.of_model(models[1])
    run = tmp_path / "run"
    shutil.copytree(models[0], run / "model")
    recipe = {"model": {"name": models[0], "call": {"height": 32}}}
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    tall = fingerprints.of_model(str(run))
    recipe["model"]["call"]["height"] = 64
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    assert len({known, tall, fingerprints.of_model(str(run))}) == 3
    monkeypatch.setattr(fingerprints, "WHOLE_BYTES", 1000)  # as of files of gigabytes
    large = fingerprints.of_model(models[0])
    rng = np.random.default_rng(0)
    weights = tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    assert fingerprints.of_model(str(tmp_path / "copy")) == large
    weights.write_bytes(rng.bytes(weights.stat().st_size))
    assert fingerprints.of_model(str(tmp_path / "copy")) != large


def test_an_adapter_is_part_of_a_run(models, tmp_path):
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"name": models[0]}}))
    adapter = run / "adapter" / "pytorch_lora_weights.safetensors"
    found = []
    for content in (b"one", b"two"):
        adapter.write_bytes(content)
        found.append(fingerprints.of_model(str(run)))
    assert found[0] != found[1]


class Elsewhere:
    """A scorer behind an address, which says who it is."""

    golden, judges, fingerprint = None, ("pictures",), "1f2e"

    def __call__(self, prompts, media):
        return {"elsewhere": np.arange(len(media), dtype=float)}


elsewhere = Elsewhere()


class Once:
    """Does what is asked once."""

    def __init__(self, honest) -> None:
        self.honest = honest

    def __call__(self, *args, **how):
        if self.honest is None:
            raise ValueError("no more")
        honest, self.honest = self.honest, None
        return honest(*args, **how)


def test_another_scorer_behind_the_same_address_does_not_go_on(compare, tmp_path, monkeypatch):
    scorer, out = "tests.test_drawn:elsewhere", tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no more"):
        patch.setattr(sampling, "sample", Once(sampling.sample))
        compare(out, scorers=[scorer])
    monkeypatch.setattr(elsewhere, "fingerprint", "9a8b")
    monkeypatch.setattr(lookup, "load_arm", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=r"is another scorer than the one that judged the first part .*9a8b, not 1f2e"):
        compare(out, scorers=[scorer])
