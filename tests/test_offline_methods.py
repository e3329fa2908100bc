"""Offline methods as whole commands on a tiny pipeline: AI feedback, a method without a reference, a tuned reward."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from palate.datasets import parquet
from palate.doors import lookup, run
from palate.media import decode
from palate.training.trainer import Trainer
from tests.test_run import PROMPTS, model, pairs, recipe_for  # noqa: F401  (fixtures)


def train(tmp_path: Path, model: Path, pairs: Path, data: dict, *overrides: str, **algorithm) -> Path:  # noqa: F811
    path = recipe_for(
        tmp_path, model, algorithm=algorithm, training={"max_steps": 2, "evaluate_every": None},
        data={"path": str(pairs), "held_out": 0, "cache": str(tmp_path / "cache"), **data},
    )  # fmt: skip
    return run.train(path, overrides)


def test_rows_are_judged_anew_and_the_tuned_model_is_a_scorer(tmp_path, model, pairs):  # noqa: F811
    folder = train(tmp_path, model, pairs, {"relabel": {"jpeg_size": -1.0}}, name="rankdpo", beta=100)
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    size = lookup.find_scorer("jpeg_size")
    for row, line in zip(parquet.read(pairs), lines, strict=True):
        sizes = next(iter(size([row.prompt] * 2, [decode(m, pairs) for m in row.media]).values()))
        first = [p for p in line["prefer"][0] if p is not None][-1]
        assert first == float(sizes[0] < sizes[1]) or sizes[0] == sizes[1]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and metrics[0]["weight"] > 0

    scorer = lookup.weighted({f"implicit:{folder}": 1.0})
    row = next(iter(parquet.read(pairs)))
    media = [decode(m, pairs) for m in row.media]
    rewards = scorer([row.prompt] * 2, media)["implicit_reward"]
    assert rewards[0] != rewards[1] and (rewards == scorer([row.prompt] * 2, media)["implicit_reward"]).all()


def coin(prompts, media):
    """A scorer that says something else each time."""
    return {"luck": [random.random() for _ in media]}


def test_a_run_goes_on_with_the_labels_it_began_with(tmp_path, model, pairs, monkeypatch):  # noqa: F811
    def killed(*_):
        raise KeyboardInterrupt

    how = {"name": "mapo", "form": "paper"}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, model, pairs, {"relabel": {"tests.test_offline_methods:coin": 1.0}}, **how)
    rows = (tmp_path / "run" / "rows.jsonl").read_bytes()
    folder = train(tmp_path, model, pairs, {"relabel": {"tests.test_offline_methods:coin": 1.0}}, **how)
    assert (folder / "rows.jsonl").read_bytes() == rows and (folder / "result.json").is_file()


def test_what_is_judged_anew_has_no_dimension_of_before(tmp_path, pairs):  # noqa: F811
    data = {"relabel": {"jpeg_size": 1.0}, "dimension": "motion"}
    with pytest.raises(ValueError, match=r"data\.relabel judges all anew, so that no data\.dimension is left"):
        train(tmp_path, Path("world:shapes"), pairs, data, name="mapo")


def test_mapo_trains_without_a_reference(tmp_path, model, pairs):  # noqa: F811
    folder = train(tmp_path, model, pairs, {}, "model.lora=null", name="mapo", form="paper")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss", "reward/margin", "error/chosen", "error/rejected"} <= set(last)
    row = next(iter(parquet.read(pairs)))  # all weights were trained: the base is loaded beside them
    scorer = lookup.weighted({f"implicit:{folder}": 1.0})
    assert scorer([row.prompt], [decode(row.media[0], pairs)])["implicit_reward"][0] != 0


def test_a_scorer_that_there_is_not_is_found_before_a_model_is_loaded(tmp_path, pairs):  # noqa: F811
    with pytest.raises(ValueError, match="unknown scorer 'jpeg_sise'; did you mean 'jpeg_size'"):
        train(tmp_path, Path("world:shapes"), pairs, {"relabel": {"jpeg_sise": 1.0}}, name="mapo")
