"""A run on stored preferences from the card people have: nothing but the denoiser there, the reference asked before."""

from __future__ import annotations

import json
import os

import pytest
import torch

from palate.doors import run
from palate.models.diffusion import DiffusionPolicy
from palate.training.cache import TensorCache
from palate.training.trainer import Trainer
from tests.test_run import model, offline, pairs  # noqa: F401
from tests.training.test_trainer import together


def metrics(folder, last: int = 10**6):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["step"] <= last]


@pytest.mark.parametrize("lora", [{"rank": 2}, None])
def test_a_reference_asked_before_trains_as_a_live_one(tmp_path, model, pairs, lora, monkeypatch):  # noqa: F811
    """In the first epochs, as many as there are draws, to the same bits; and nothing else is there meanwhile."""
    training = {"max_steps": 5, "batch_size": 4, "evaluate_every": 2, "checkpoint_every": 10, "learning_rate": 1e-3}
    recipe = offline(tmp_path, model, pairs, training=training)
    live = run.train(recipe, [f"model.lora={json.dumps(lora)}", f"output={tmp_path / 'live'}"])
    real, seen = Trainer._optimise, []

    def optimise(self, *args):
        assert self.reference is None
        pipeline = self.policy.pipeline
        seen.append(sum(p.numel() for part in (pipeline.vae, pipeline.text_encoder) for p in part.parameters()))
        return real(self, *args)

    monkeypatch.setattr(Trainer, "_optimise", optimise)
    monkeypatch.setattr(DiffusionPolicy, "encode", lambda *_: pytest.fail("a picture was encoded again"))
    options = [f"model.lora={json.dumps(lora)}", "data.reference_draws=1", f"output={tmp_path / 'asked'}"]
    asked = run.train(recipe, options)
    assert seen == [0] * 5
    first_epoch = 2  # of 8 to 10 rows
    assert metrics(asked, first_epoch) == metrics(live, first_epoch)
    assert metrics(asked)[-1]["step"] == metrics(live)[-1]["step"] == 5
    pictures = [folder / "samples" / "step_000002.png" for folder in (live, asked)]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    kind = "adapter" if lora else "model"
    assert (asked / kind).is_dir()
    if not lora:  # what is exported is whole
        DiffusionPolicy.load(asked / kind).condition(["a red cat"])


def test_a_method_without_a_reference_asks_none(tmp_path, model, pairs):  # noqa: F811
    recipe = offline(tmp_path, model, pairs)
    with pytest.raises(ValueError, match=r"sft has no reference: leave out data.reference_draws"):
        run.train(recipe, ["algorithm={name: sft}", "data.reference_draws=2"])


@pytest.mark.slow
def test_two_processes_keep_to_the_budget_of_the_cache(tmp_path, model, pairs):  # noqa: F811
    """The first makes room although the second has the cache open, too; what either uses stays."""
    kept = tmp_path / "cache"
    with TensorCache(kept) as before:
        before.put("f" * 64, {"x0": torch.zeros(1000)})
    old = kept / "ff" / f"{'f' * 64}.safetensors"
    os.utime(old, (0, 0))
    recipe = offline(tmp_path, model, pairs)
    options = [f"data.cache={kept}", "data.cache_gb=1.0e-9", "training.max_steps=2", "evaluation=null"]
    together(lambda processes: run.train(recipe, options), 2, tmp_path)
    assert not old.exists() and (tmp_path / "run" / "adapter").is_dir()
