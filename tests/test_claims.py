"""The claims scripts, in miniature: every kind of arm runs once, is not run again, and ends up in the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from benchmarks.claims import common, d3po, diffusion_dpo, flow_dpo, mapo, rankdpo, rounds, syn_pic, tables

TOY = common.Claim("toy", {"steps": 1})
TIER = replace(common.CPU, seeds=(1, 2), samples=6, tuning_samples=4)


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "drift", lambda policy: 0.0)
    monkeypatch.setattr(d3po, "rounds", lambda tier: 1)
    monkeypatch.setattr(d3po, "PROMPTS", 2)
    monkeypatch.setattr(d3po, "K", 2)
    monkeypatch.setattr(d3po, "STEPS", {"cpu": 2, "full": 2})
    monkeypatch.setattr(d3po, "GRID", {name: grid[:1] for name, grid in d3po.GRID.items()})
    monkeypatch.setattr(diffusion_dpo, "PROMPTS", {"cpu": 8})
    monkeypatch.setattr(diffusion_dpo, "K", 2)
    monkeypatch.setattr(diffusion_dpo, "STEPS", 2)
    monkeypatch.setattr(diffusion_dpo, "RATES", (1e-4,))
    monkeypatch.setattr(diffusion_dpo, "BETAS", (300.0, 1000.0))
    monkeypatch.setattr(rankdpo, "PROMPTS", {"cpu": 8})
    monkeypatch.setattr(rankdpo, "STEPS", 2)
    monkeypatch.setattr(rankdpo, "RATES", (1e-4,))
    monkeypatch.setattr(
        rankdpo, "METHODS", {name: rankdpo.METHODS[name] for name in ("weighted-sft", "dpo", "rankdpo")}
    )
    monkeypatch.setattr(flow_dpo, "PROMPTS", {"cpu": 4})
    monkeypatch.setattr(flow_dpo, "K", 2)
    monkeypatch.setattr(flow_dpo, "STEPS", {"cpu": 2})
    monkeypatch.setattr(flow_dpo, "GRID", {name: grid[:1] for name, grid in flow_dpo.GRID.items()})
    monkeypatch.setattr(rounds, "ROUNDS", rounds.ROUNDS | {"n": 1, "prompts_per_round": 6})
    monkeypatch.setattr(rounds, "STEPS", 2)
    monkeypatch.setattr(rounds, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(syn_pic, "PROMPTS", {"cpu": 8})
    monkeypatch.setattr(syn_pic, "STEPS", 2)
    monkeypatch.setattr(syn_pic, "RATES", (1e-4,))
    monkeypatch.setattr(mapo, "PROMPTS", {"cpu": 8})
    monkeypatch.setattr(mapo, "STEPS", 2)
    monkeypatch.setattr(mapo, "RATES", (1e-4,))
    monkeypatch.setattr(mapo, "SMALLER", (100.0,))
    monkeypatch.setattr(mapo, "LEVELS", (1.0,))
    monkeypatch.setattr(mapo, "METHODS", {name: mapo.METHODS[name] for name in ("dpo", "mapo")})
    monkeypatch.setattr(mapo, "TUNED_ON", {"taste": "taste", "safety": "taste", "style1": "taste"})
    monkeypatch.setattr(mapo, "TASKS", ("taste", "safety", "style1"))
    monkeypatch.setattr(mapo, "mismatch", partial(mapo.mismatch, n=8))
    monkeypatch.setattr(mapo, "cost", partial(mapo.cost, repeats=2))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "claim", [d3po, diffusion_dpo, flow_dpo, mapo, rankdpo, rounds, syn_pic], ids=lambda claim: claim.CLAIM.name
)
def test_a_claim_from_its_first_arm_to_its_table(small, claim, capsys):
    forever = time.monotonic() + 3600
    assert common.run_arms(claim.CLAIM, TIER, claim.tuning(TIER), forever) == 0
    arms = claim.reported(TIER)
    half = [arm for arm in arms if arm[1] == TIER.seeds[0]]
    assert common.run_arms(claim.CLAIM, TIER, half, forever) == 0
    claim.show(TIER)  # a table of what there is
    assert common.run_arms(claim.CLAIM, TIER, arms, forever) == 0
    capsys.readouterr()
    assert common.run_arms(claim.CLAIM, TIER, arms, forever) == 0
    assert capsys.readouterr().out == ""  # nothing was left to do
    claim.show(TIER)
    facts = json.loads((small / f"{claim.CLAIM.name}-cpu.json").read_text())
    assert {row["seed"] for row in facts["rows"]} == set(TIER.seeds) and facts["verdicts"]


@pytest.mark.slow
def test_a_claims_command_runs_its_arms_side_by_side(tmp_path):
    command = [sys.executable, "-m", "tests.toy_claim"]
    how = {"env": {**os.environ, "TOY_RESULTS": str(tmp_path)}, "text": True, "capture_output": True, "check": True}
    assert "values [0, 1] processes 2" in subprocess.run(command, **how).stdout
    again = subprocess.run(command, **how).stdout
    assert "toy arm" not in again and "values [0, 1]" in again  # nothing was left to do


def test_no_time_runs_no_arm(small, capsys):
    def never():
        raise AssertionError("ran")

    assert common.run_arms(TOY, TIER, [("a", 1, never), ("b", 1, never)], time.monotonic() - 1) == 2
    assert "2 arms left" in capsys.readouterr().out


def test_arms_made_on_another_base_do_not_count(small, monkeypatch):
    assert common.run_arms(TOY, TIER, [("a", 1, lambda: {"n": 1})], time.monotonic() + 9) == 0
    assert common.load_arm(TOY, TIER, "a", 1)
    other = common.Claim("toy", {"steps": 2})
    assert common.load_arm(other, TIER, "a", 1) is None  # another setting
    monkeypatch.setattr(common, "_weights", lambda world: "another")
    assert common.load_arm(TOY, TIER, "a", 1) is None  # another base


def test_a_ratio_of_gains_has_the_interval_it_should():
    rng = np.random.default_rng(0)
    bottom = [rng.normal(2.0, 0.5, 400) for _ in range(3)]
    point, low, high = tables.interval_of_ratio([x / 2 for x in bottom], bottom)
    assert point == pytest.approx(0.5) and low == pytest.approx(0.5) and high == pytest.approx(0.5)
    point, low, high = tables.interval_of_mean([rng.normal(1.0, 1.0, 400) for _ in range(3)])
    assert low < 1.0 < high and high - low < 0.6
