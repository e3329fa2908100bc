"""The demo, in small: every method goes through the whole loop and leaves what a newcomer looks at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from palate import demo

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
    return replace(plan, prompts=6, k=2, judged=4, training=training, rollout=rollout)


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
        "ties",
    } <= stored.keys()
    assert stored["method"] == method and stored["seed"] == 3
    assert (stored["n_pairs"] == 0) == (method == "ddpo")  # DDPO is told the reward, not asked for comparisons
    assert {"reward", "alignment", "wholeness", "safety", "style"} <= stored["base"].keys() & stored["tuned"].keys()
    page = (out / "report.html").read_text()
    assert "data:image/png" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert (out / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    capsys.readouterr()
    assert demo.run(method, out, 3, small(method)) == stored
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match="other settings"):
        demo.run(method, out, 4, small(method))


def test_an_unknown_method_is_named(tmp_path):
    with pytest.raises(ValueError, match="not 'dppo'"):
        demo.run("dppo", tmp_path)


def test_the_same_seed_gives_the_same_result(tmp_path):
    a, b = (demo.run("diffusion_dpo", tmp_path / name, 1, small("diffusion_dpo")) for name in "ab")
    assert a["tuned"] == b["tuned"] and a["n_pairs"] == b["n_pairs"]
    same = [Path(tmp_path / name / "adapter" / "pytorch_lora_weights.safetensors").read_bytes() for name in "ab"]
    assert same[0] == same[1]
