"""The demo, in small: every method goes through the whole loop and leaves what a newcomer looks at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from palate import durable
from palate.algorithms import d3po
from palate.doors import demo
from palate.worlds import shapes

METHODS = sorted(demo.PLANS)


def small(method: str) -> demo.Plan:
    plan = demo.PLANS[method]
    online = bool(plan.rollout)
    training = plan.training.model_copy(
        update={
            "max_steps": 2,
            "batch_size": 6,
            "micro_batch_size": 3,
            "warmup_steps": 0,
            "checkpoint_every": 1,
            "evaluate_every": None if online else 1,
        }
    )
    rollout = {**plan.rollout, "prompts_per_round": 2, "k": 2} if online else {}
    return replace(plan, prompts=6, k=2, judged=4, watched=2, training=training, rollout=rollout)


@pytest.mark.parametrize("method", METHODS)
def test_the_whole_loop(tmp_path, method, capsys):
    out = tmp_path / method
    result = demo.run(method, out, 3, small(method))
    stored = json.loads((out / "result.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert {
        "method",
        "seed",
        "n_pairs",
        "win_rate",
        "win_rate_ci95",
        "base",
        "tuned",
        "seconds",
        "peak_memory_gb",
        "ties",
    } <= stored.keys()
    assert stored["method"] == method and stored["seed"] == 3
    assert stored["prompts_trained_on"] == 0
    on, online = stored["trained_on"], "rows" not in stored["trained_on"]
    assert on["prompts"] == (len(shapes.prompts("train")) if online else 6) and len(on["sha256"]) == 64
    card = (out / "adapter" / "README.md").read_text()
    assert f"- sha256: {on['sha256']} (`result.json: trained_on.sha256`)" in card and ("- rows: 6" in card) != online
    assert (stored["n_pairs"] == 0) == (method == "ddpo")  # DDPO is told the reward, not asked for comparisons
    assert {"reward", "alignment", "wholeness", "safety", "style"} <= stored["base"].keys() & stored["tuned"].keys()
    page = (out / "report.html").read_text()
    assert "evaluation/reward" in page and (out / "samples" / "step_000002.png").is_file()
    assert 0.1 < stored["peak_memory_gb"] < 8
    assert "data:image/png" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert (out / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    capsys.readouterr()
    (out / "report.html").unlink()  # as if stopped between the result and its page
    assert demo.run(method, out, 3, small(method)) == stored
    assert "is finished" in capsys.readouterr().out and (out / "report.html").is_file()
    with pytest.raises(ValueError, match="other settings"):
        demo.run(method, out, 4, small(method))


def test_the_resolved_settings_are_kept(tmp_path):
    out = tmp_path / "demo"
    with pytest.raises(ValueError, match="other settings"):
        _begun(out, {"method": "sft"})
    plan = demo.PLANS["d3po"]
    settings = demo.resolved(plan, d3po.Config(**plan.options))
    assert settings["options"] == d3po.Config(shared_noise=False, clip=1e-3).model_dump()
    assert settings["rollout"]["eta"] == 1.0 and settings["training"]["adam_beta1"] == 0.9


def _begun(out: Path, settings: dict) -> None:
    """The demo on a folder that was begun with these settings."""
    out.mkdir()
    (out / "config.yaml").write_text(yaml.safe_dump(settings))
    demo.run("sft", out, 0, small("sft"))


def test_a_second_demo_on_a_live_folder_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.lookup, "load_policy", lambda *_: pytest.fail("a model was loaded"))
    with durable.locked(tmp_path), pytest.raises(OSError, match="is in use by another run"):
        demo.run("sft", tmp_path, 0, small("sft"))
    assert not (tmp_path / "config.yaml").exists()


def test_the_time_of_all_invocations_is_added_up(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.assembly, "fit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        demo.run("sft", tmp_path, 0, small("sft"))
    held = json.loads((tmp_path / "meter.json").read_text())
    assert held["seconds"] > 0
    (tmp_path / "meter.json").write_text(json.dumps(held | {"seconds": 1000.0, "peak_memory_gb": 7.5}))
    monkeypatch.undo()
    result = demo.run("sft", tmp_path, 0, small("sft"))
    assert 1000 < result["seconds"] < 1500 and result["peak_memory_gb"] == 7.5


@pytest.mark.parametrize(("steps", "every", "seen"), [(200, 40, [0, 80, 160, 200]), (64, 16, [0, 16, 32, 48, 64])])
def test_the_reward_is_watched_four_or_five_times(steps, every, seen):
    due = [step for step in range(steps + 1) if step % every == 0 and demo.due(step, every, steps)]
    assert due == seen


def test_the_pictures_watched_are_not_those_judged():
    plan = demo.PLANS["diffusion_dpo"]
    watched, judged = demo.eval_prompts(plan, 5)
    assert len(watched) == plan.watched and len(judged) == plan.judged and not set(watched) & set(judged)
    assert judged == demo.some(shapes.prompts("eval"), plan.judged, 5)


def test_an_unknown_method_is_named(tmp_path):
    with pytest.raises(ValueError, match="not 'dppo'"):
        demo.run("dppo", tmp_path)


def test_the_same_seed_gives_the_same_result(tmp_path):
    a, b = (demo.run("diffusion_dpo", tmp_path / name, 1, small("diffusion_dpo")) for name in "ab")
    assert a["tuned"] == b["tuned"] and a["n_pairs"] == b["n_pairs"]
    same = [Path(tmp_path / name / "adapter" / "pytorch_lora_weights.safetensors").read_bytes() for name in "ab"]
    assert same[0] == same[1]
