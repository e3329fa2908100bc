"""The loop: one division whatever the split, known starts, bad numbers, evaluation, and what it writes."""

from __future__ import annotations

import json
import math
import os
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from palate import config
from palate.models.contracts import LossOutput, Needs, State
from palate.remote import Unavailable
from palate.training import adapters, census, checkpoint, logs, optimisation, sources, trainer
from palate.training.processes import Processes, join
from palate.training.signals import StopRequest
from tests.training import forks, tiny


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(run: trainer.Trainer) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in run.parameters.values()])


def assert_same_course(one: Path, two: Path, rtol: float = 1e-5) -> None:
    first, second = rows_of(one), rows_of(two)
    assert [row.keys() for row in first] == [row.keys() for row in second]
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=rtol, abs=rtol)


# --- one division -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.offline, tiny.online])
def test_eight_by_one_is_one_by_eight(make, tmp_path):
    gradients = {}
    for micro in (8, 2, 1):
        run = make(tmp_path / str(micro), batch_size=8, micro_batch_size=micro, max_steps=1, max_grad_norm=None)
        apply = run._apply
        run._apply = lambda given, weight, micro=micro, apply=apply: (
            gradients.update({micro: torch.cat([g.flatten() for g in given]) / weight}),
            apply(given, weight),
        )[1]
        run.run()
    for micro in (2, 1):
        torch.testing.assert_close(gradients[micro], gradients[8], rtol=1e-5, atol=1e-7)
        assert_same_course(tmp_path / "8", tmp_path / str(micro), 1e-6)


def test_rows_weigh_what_they_weigh_whatever_the_split(tmp_path):
    """Unequal micro-batches and weights: a mean of means would be wrong."""
    from dataclasses import replace

    rows = [replace(row, weight=float(1 + i % 3)) for i, row in enumerate(tiny.preference_rows(tiny.TinyPolicy(), 9))]
    for micro in (6, 3, 1):
        options = {"rows": rows, "batch_size": 6, "micro_batch_size": micro, "max_steps": 4}
        tiny.offline(tmp_path / str(micro), **options).run()
    assert_same_course(tmp_path / "6", tmp_path / "3")
    assert_same_course(tmp_path / "6", tmp_path / "1")


def together(work, world: int, folder: Path) -> None:
    """`work(processes)` in `world` forked processes joined as torchrun and accelerate would."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes = join(torch.device("cpu"))
        assert (processes.rank, processes.world) == (rank, world)
        work(processes)
        (folder / f"done {rank}").touch()

    children = [forks.start(partial(one, rank)) for rank in range(world)]
    assert [forks.wait(child) for child in children] == [0] * world


@pytest.mark.parametrize("make", [tiny.offline, tiny.online])
def test_two_processes_are_one(make, tmp_path):
    """The same course, from one folder, with validation; a later run alone continues what two began."""
    options = {"evaluate_every": 3, "early_stopping": 9} if make is tiny.offline else {"learning_rate": 1e-4}
    make(tmp_path / "one", **options).run()

    def work(processes: Processes) -> None:
        run = make(tmp_path / "two", processes, **options)
        run.run()
        (tmp_path / f"weights {processes.rank}").write_bytes(weights_of(run).numpy().tobytes())

    together(work, 2, tmp_path)
    assert_same_course(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "weights 0").read_bytes() == (tmp_path / "weights 1").read_bytes()
    assert make(tmp_path / "two", **options).run().step == len([r for r in rows_of(tmp_path / "one") if r["step"]])


@pytest.mark.slow
@pytest.mark.parametrize("judges", [0, 1])
def test_a_scorer_that_one_process_cannot_reach_stops_both(judges, tmp_path):
    """Neither waits for the other; what both saved goes on to the same course."""
    tiny.online(tmp_path / "one", learning_rate=1e-4).run()

    def work(processes: Processes) -> None:
        calls = 0

        def scorer(prompts, media):
            nonlocal calls
            calls += 1
            if calls == 2 and processes.rank == judges:
                raise Unavailable("it did not answer")
            return tiny.brightness(prompts, media)

        with pytest.raises(Unavailable, match="it did not answer"):
            tiny.online(tmp_path / "two", processes, scorer=scorer, learning_rate=1e-4).run()

    together(work, 2, tmp_path)
    together(lambda processes: tiny.online(tmp_path / "two", processes, learning_rate=1e-4).run(), 2, tmp_path)
    assert_same_course(tmp_path / "one", tmp_path / "two")


def test_processes_wait_for_each_other_for_hours(monkeypatch):
    """One that has encoded its share waits for the others, and a collective that times out ends the run."""
    asked = {}

    def joined(**how):
        asked.update(how)
        raise KeyboardInterrupt

    monkeypatch.setattr("accelerate.PartialState", joined)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(KeyboardInterrupt):
        join(torch.device("cpu"))
    assert asked["timeout"].total_seconds() >= 24 * 3600


# --- starts and stops -------------------------------------------------------------------------------------------------


def test_the_first_loss_is_ln_2_and_the_pairs_are_learnt(tmp_path):
    run = tiny.offline(tmp_path, max_steps=40, batch_size=8, ema_decay=None)
    run.run()
    rows = rows_of(tmp_path)
    assert rows[0]["loss"] == pytest.approx(math.log(2), rel=1e-6) and rows[0]["reward/margin"] == 0
    assert rows[0]["grad_norm"] > 0
    assert sum(row["loss"] for row in rows[-4:]) / 4 < 0.55 and rows[-1]["reward/accuracy"] > 0.8


@pytest.mark.parametrize("make", [tiny.offline, tiny.online])
def test_a_start_that_is_not_at_the_reference_is_refused_unless_said(make, tmp_path):
    run = make(tmp_path, max_steps=1)
    with torch.no_grad():
        for parameter in run.parameters.values():
            parameter.add_(0.02)
    if make is tiny.online:  # its rolling reference would be the policy: hold it to the base
        run.reference = adapters.reference_of(run.policy, "base")
    before = weights_of(run).clone()
    with pytest.raises(trainer.TrainingError, match=r"first loss is .* and should be 0\.6931472"):
        run.run()
    assert torch.equal(weights_of(run), before)
    run._start_loss = None
    run.run()


def test_half_precision_starts_within_its_own_tolerance(tmp_path):
    run = tiny.offline(tmp_path, mixed_precision="bf16", max_steps=2)
    run.run()
    assert rows_of(tmp_path)[0]["loss"] == pytest.approx(math.log(2), rel=2e-3)
    assert {weight.dtype for weight in run.parameters.values()} == {torch.float32}


def test_other_settings_and_another_model_are_refused_with_the_difference(tmp_path):
    tiny.offline(tmp_path).run()
    with pytest.raises(trainer.TrainingError, match=r"begun with other settings: .*learning_rate"):
        tiny.offline(tmp_path, learning_rate=1e-3).run()
    run = tiny.offline(tmp_path)
    with torch.no_grad():
        run.policy.module.to_k.base_layer.weight.add_(1e-3)
    with pytest.raises(adapters.AdapterError, match="frozen weights"):
        run.run()


def test_an_explicit_checkpoint_that_is_bad_is_an_error_and_a_good_one_is_continued(tmp_path):
    tiny.offline(tmp_path / "run").run()
    straight = forks.fingerprint(tmp_path / "run")
    run = tiny.offline(tmp_path / "run")
    run._resume = tmp_path / "run" / "checkpoints" / "step-00000005"
    with pytest.raises(checkpoint.CheckpointError, match="step-00000005 is no checkpoint"):
        run.run()
    run = tiny.offline(tmp_path / "run")
    run._resume = tmp_path / "run" / "checkpoints" / "step-00000004"
    run.run()
    again = forks.fingerprint(tmp_path / "run")
    assert again.pop("folders") == ["aside-step-00000006", *straight.pop("folders")] and again == straight


# --- bad numbers ------------------------------------------------------------------------------------------------------


def spoilt(rows, index, value=float("nan")):
    from dataclasses import replace

    rows[index] = replace(rows[index], x0=torch.full_like(rows[index].x0, value))
    return rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_bad_row_is_left_out_and_counted(value, tmp_path):
    """The run is the one without the row, but for its place in the order of rows."""
    rows = tiny.preference_rows(tiny.TinyPolicy(), 8)
    tiny.offline(tmp_path / "bad", rows=spoilt(rows, 3, value), batch_size=8, max_steps=4).run()
    seen = rows_of(tmp_path / "bad")
    assert [row["rows/not_finite"] for row in seen] == [1.0] * 4
    assert all(math.isfinite(number) for row in seen for number in row.values())
    tiny.offline(tmp_path / "good", rows=rows[:3] + rows[4:], batch_size=7, max_steps=4).run()
    for a, b in zip(seen, rows_of(tmp_path / "good"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["grad_norm"] == pytest.approx(
            b["grad_norm"], rel=1e-4
        )


def test_nothing_but_bad_rows_stops_after_five_steps_with_a_checkpoint(tmp_path):
    rows = tiny.preference_rows(tiny.TinyPolicy(), 4)
    for index in range(4):
        spoilt(rows, index)
    run = tiny.offline(tmp_path, rows=rows, max_steps=20)
    before = weights_of(run).clone()
    with pytest.raises(trainer.TrainingError, match="5 steps in a row had no finite gradient, up to step 5") as error:
        run.run()
    assert "\n" not in str(error.value)
    assert torch.equal(weights_of(run), before)
    assert [folder.name for folder in checkpoint.folders(tmp_path / "checkpoints")] == [
        "step-00000004",
        "step-00000005",
    ]
    assert sum(row["rows/not_finite"] for row in rows_of(tmp_path)) == 20


def test_a_step_whose_gradient_is_not_finite_is_skipped(tmp_path):
    """Though every row's is: the weights stay, the step is counted, and the next one goes on."""
    run = tiny.offline(tmp_path, max_steps=2)
    before, real = weights_of(run).clone(), run._backward

    def overflown(micros):
        totals = real(micros)
        if run.step == 0:
            next(iter(run.parameters.values())).grad.fill_(math.inf)
        else:
            assert torch.equal(weights_of(run), before)
        return totals

    run._backward, run._backward_by_row = overflown, lambda feed: overflown(feed.micros())
    run.run()
    assert [row.get("step/skipped") for row in rows_of(tmp_path)] == [1.0, None]
    assert not torch.equal(weights_of(run), before)


def test_a_step_without_judged_rows_changes_nothing_and_is_not_bad(tmp_path):
    from dataclasses import replace

    rows = tiny.preference_rows(tiny.TinyPolicy(), 8)
    rows[:7] = [replace(row, prefer=torch.full_like(row.prefer, 0.5)) for row in rows[:7]]
    run = tiny.offline(tmp_path, rows=rows, max_steps=8, batch_size=1)
    courses, apply = [], run._apply
    run._apply = lambda *given: (courses.append(run.step), apply(*given))[1]
    result = run.run()
    (step,) = courses
    assert [row["step"] for row in rows_of(tmp_path) if "loss" in row] == [step + 1]
    assert result.step == 8 and result.warnings == ()


@pytest.mark.parametrize("value", [0.5, math.nan])
def test_rows_that_nobody_decided_are_refused_before_anything_is_done(value, tmp_path):
    """A thousand steps that do nothing would end in "done"."""
    from dataclasses import replace

    rows = tiny.preference_rows(tiny.TinyPolicy(), 4)
    tied = [replace(row, prefer=torch.full_like(row.prefer, value)) for row in rows]
    with pytest.raises(sources.SourceError, match=r"nothing to learn from these 4 rows: no pair is decided.*collect"):
        tiny.offline(tmp_path, rows=tied).run()
    assert not (tmp_path / "metrics.jsonl").exists() and not (tmp_path / "checkpoints").exists()
    assert tiny.offline(tmp_path, rows=[*tied, rows[0]]).run().step == 6


def test_scores_that_are_not_there_are_refused(tmp_path):
    from dataclasses import replace

    from palate.algorithms import rwr

    rows = [replace(row, scores=torch.zeros(2, 0)) for row in tiny.preference_rows(tiny.TinyPolicy(), 4)]
    made = tiny.offline(tmp_path, rows=rows)
    run = trainer.Trainer(made.policy, rwr, rwr.Config(), made.source, made.settings, tmp_path, progress=False)
    with pytest.raises(sources.SourceError, match="no candidate has a score"):
        run.run()


def test_the_loss_scale_falls_on_overflow_and_rises_again():
    scale = optimisation.LossScale(tiny.settings(mixed_precision="fp16"))
    assert scale.update(False) and scale.value == 2.0**15
    for _ in range(2000):
        scale.update(True)
    assert scale.value == 2.0**16
    for _ in range(16):
        assert scale.update(False)
    assert scale.value == 1 and not scale.update(False)  # not the scale's fault any more
    assert not optimisation.LossScale(tiny.settings()).update(False)


def test_float16_rescales_and_goes_on(tmp_path):
    run = tiny.offline(tmp_path, mixed_precision="fp16", max_steps=6)
    run._scale.value = 2.0**40
    run.run()
    rows = rows_of(tmp_path)
    assert any("step/rescaled" in row for row in rows) and not any("step/skipped" in row for row in rows)


# --- the optimiser ----------------------------------------------------------------------------------------------------


def test_learning_rates():
    def rates(**changes):
        chosen = tiny.settings(learning_rate=1.0, max_steps=10, **changes)
        return [round(optimisation.learning_rate(chosen, step), 4) for step in range(1, 11)]

    assert rates() == [1.0] * 10
    assert rates(warmup_steps=4) == [0.25, 0.5, 0.75] + [1.0] * 7
    assert rates(warmup_steps=5, lr_schedule="linear") == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    cosine = rates(lr_schedule="cosine")
    assert cosine[0] == 1.0 and cosine[5] == 0.5 and cosine == sorted(cosine, reverse=True) and cosine[-1] > 0


def test_it_is_adamw_with_clipping(tmp_path):
    """Against torch's own plain implementation, step by step."""
    run = tiny.offline(tmp_path, max_steps=5, max_grad_norm=0.5, weight_decay=0.1, warmup_steps=2)
    copies = {name: nn.Parameter(weight.detach().clone()) for name, weight in run.parameters.items()}
    plain = torch.optim.AdamW(
        copies.values(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, foreach=False, fused=False
    )
    apply = run._apply

    def both(gradients, weight):
        for copy, gradient in zip(copies.values(), gradients, strict=True):
            copy.grad = gradient / weight
        norm = torch.nn.utils.clip_grad_norm_(copies.values(), 0.5)
        plain.param_groups[0]["lr"] = optimisation.learning_rate(run.settings, run.step + 1)
        plain.step()
        out = apply(gradients, weight)
        assert out["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
        for name, copy in copies.items():
            torch.testing.assert_close(run.parameters[name], copy, rtol=1e-5, atol=1e-7)
        return out

    run._apply = both
    run.run()


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(()))


def with_head() -> SimpleNamespace:
    """A regression through the policy and a value head of the algorithm's own."""

    def step(policy, reference, batch, draw, state, config):
        out = policy.predict(batch.x0[:, 0], draw.t, batch.cond).flatten(1)
        value = state.modules["head"].value(out).squeeze(1)
        state.modules["head"].seen += 0.1
        return LossOutput((value - state.modules["head"].seen).square().sum(), torch.tensor(float(len(batch))))

    return SimpleNamespace(NEEDS=Needs("offline"), init=lambda p, c: State(modules={"head": Head()}), step=step)


def test_an_algorithms_own_modules_are_trained_saved_and_restored(tmp_path):
    def make(folder, until=None):
        run = tiny.offline(folder)
        made = trainer.Trainer(
            run.policy, with_head(), None, run.source, run.settings, folder, progress=False, tensorboard=False
        )
        advance = made._advance

        def stop_early(stop):
            if made.step == until:
                raise KeyboardInterrupt
            advance(stop)

        made._advance = stop_early
        return made

    straight = make(tmp_path / "straight")
    start = straight.state.modules["head"].value.weight.detach().clone()
    straight.run()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", until=3).run()
    again = make(tmp_path / "cut")
    again.run()
    assert "state.head.value.weight" in straight.parameters
    assert not torch.equal(straight.state.modules["head"].value.weight, start)
    assert torch.equal(weights_of(again), weights_of(straight))
    assert not any("head" in name for name in adapters.trainable(again.policy))


# --- evaluation and stopping ------------------------------------------------------------------------------------------


def test_evaluations_come_at_the_start_every_n_steps_and_at_the_end_with_the_average(tmp_path):
    run = tiny.offline(tmp_path, max_steps=5, evaluate_every=2)
    seen = []

    def evaluate(step):
        average = torch.cat([w.flatten() for w in run.ema.weights.values()])
        assert torch.equal(weights_of(run), average)
        seen.append(step)
        return {"brightness": float(step)}

    run._evaluate = evaluate
    result = run.run()
    assert seen == [0, 2, 4, 5] and result.metrics["brightness"] == 5
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows if "validation/loss" in row] == [0, 2, 4, 5]
    assert rows[0]["validation/loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert rows[0].keys() == {"step", "brightness"} | {k for k in rows[0] if k.startswith("validation/")}


def test_early_stopping_keeps_the_best_held_out_weights(tmp_path):
    losses = iter([0.7, 0.6, 0.5, 0.55, 0.52, 0.1])
    run = tiny.offline(tmp_path, max_steps=30, evaluate_every=1, early_stopping=2, ema_decay=None, checkpoint_every=50)
    kept = {}

    def validate():
        kept[run.step] = weights_of(run).clone()
        return {"validation/loss": next(losses)}

    run._validate = validate
    result = run.run()
    assert (result.step, result.reason, result.exported, result.exported_step) == (4, "early stopping", "best", 2)
    assert torch.equal(weights_of(run), kept[2])
    again = tiny.offline(
        tmp_path, max_steps=30, evaluate_every=1, early_stopping=2, ema_decay=None, checkpoint_every=50
    )
    assert again.run() == result and torch.equal(weights_of(again), kept[2])


def judged(folder: Path, losses: list[float | None], **changes):
    """A run whose held-out losses, from the start on, are these."""
    left = iter(losses)
    run = tiny.offline(folder, evaluate_every=1, ema_decay=None, **{"max_steps": len(losses) - 1, **changes})
    run._validate = lambda: {} if (loss := next(left)) is None else {"validation/loss": loss}
    run.source.validation_rows = []  # whose number is another matter
    return run


NAN = math.nan


@pytest.mark.parametrize(
    ("losses", "step", "best"),
    [
        ([0.7, NAN, 0.65, 0.66], 3, 2),
        ([NAN, 0.7, 0.65, 0.66, math.inf], 4, 2),
        ([0.7, NAN, None, NAN, 0.1], 3, None),
        ([0.7, 0.6, NAN, NAN, 0.1], 3, 1),
    ],
)
def test_a_held_out_loss_that_is_not_finite_is_never_the_best(losses, step, best, tmp_path):
    result = judged(tmp_path, losses, early_stopping=2).run()
    assert (result.step, result.exported) == (step, "last" if best is None else "best")
    assert result.exported_step == best or best is None
    assert result.warnings == (
        ("no held-out loss was finite, so nothing tells good weights from bad",) if best is None else ()
    )


@pytest.mark.parametrize("patience", [5, 0])
@pytest.mark.parametrize("lowest", [0.7, 0.71])
def test_weights_no_better_than_the_start_are_exported_with_a_warning(lowest, patience, tmp_path, capfd):
    def made():
        run = judged(tmp_path, [0.7, 0.9, lowest, 0.8], early_stopping=patience)
        run._progress = True
        return run

    result = made().run()
    (warning,) = result.warnings
    assert f"their lowest loss, {lowest:.4f} at step 2, is not below the 0.7000 of the start" in warning
    assert capfd.readouterr().err.splitlines()[-1] == f"warning: {warning}"
    assert made().run() == result  # a finished run says the same again


def test_weights_better_than_the_start_are_exported_without_one(tmp_path):
    assert judged(tmp_path, [0.7, 0.9, 0.69, 0.8], early_stopping=5).run().warnings == ()


def test_few_held_out_prompts_are_warned_of_where_they_judge(tmp_path, capfd):
    run = tiny.offline(tmp_path / "judged", evaluate_every=3)
    run._progress = True
    few, *verdict = run.run().warnings
    assert "the held-out loss is of only 2 prompts" in few and not verdict
    assert capfd.readouterr().err.startswith(f"warning: {few}\n")
    assert tiny.offline(tmp_path / "unheard").run().warnings == ()


def test_a_bad_row_is_left_out_of_the_held_out_loss_and_counted(tmp_path):
    def validated(folder, spoil):
        rows = tiny.preference_rows(tiny.TinyPolicy(), 20)
        run = tiny.offline(folder, rows=rows, evaluate_every=1, max_steps=1, micro_batch_size=2)
        index = run.source.validation_rows[0]
        if spoil:
            spoilt(rows, index)
        else:
            run.source.validation_rows.remove(index)
        run.run()
        return rows_of(folder)

    good, bad = validated(tmp_path / "good", False), validated(tmp_path / "bad", True)
    assert [row.pop("validation/rows/not_finite") for row in bad] == [4, 4]  # four draws of it
    for a, b in zip(good, bad, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_what_is_exported_is_said(tmp_path):
    last = tiny.offline(tmp_path / "last", ema_decay=None).run()
    average = tiny.offline(tmp_path / "ema").run()
    assert (last.exported, average.exported, last.exported_step) == ("last", "ema", 6)
    assert (tmp_path / "ema" / "adapter").is_dir()


def test_the_census_holds_over_a_whole_run(tmp_path):
    run = tiny.online(tmp_path)
    before = census.take(run.policy)
    run.run()
    census.check(before, census.take(run.policy))
    owned = {id(weight) for group in run._optimiser.param_groups for weight in group["params"]}
    assert owned == {id(weight) for weight in adapters.trainable(run.policy).values()}


@pytest.mark.parametrize("make", [tiny.offline, tiny.online])
def test_a_run_that_would_train_more_than_the_adapter_is_refused(make, tmp_path):
    run = make(tmp_path)
    run.policy.module.to_k.base_layer.weight.requires_grad_(True)
    with pytest.raises(adapters.AdapterError, match=r"not the adapter's: to_k\.base_layer\.weight; freeze"):
        run.run()


# --- what is written and said -----------------------------------------------------------------------------------------


def test_tensorboard_and_timing_are_written(tmp_path):
    run = tiny.offline(tmp_path)
    run._tensorboard = True
    run.run()
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timing] == [1, 2, 3, 4, 5, 6] and all(row["seconds"] > 0 for row in timing)


def test_progress_is_plain_lines_when_there_is_no_terminal(tmp_path, capfd):
    run = tiny.offline(tmp_path)
    run._progress = True
    run.run()
    lines = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"step 6/6  loss 0\.\d+  reward/accuracy .*\d", lines[-1])


def test_progress_of_an_online_run_shows_the_mean_score_and_the_sampling(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(logs, "_QUIET_S", 0.0)
    run = tiny.online(tmp_path)
    run._progress = True
    run.run()
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "step 0/9  sampling round 1: 8 samples"
    scores = [re.search(r"samples/brightness (\S+)", line) for line in lines if " loss " in line]
    rows = [row.get("samples/brightness") for row in rows_of(tmp_path)]
    assert None in rows  # a round has several steps, and its samples are in the row of the first
    for place in range(1, len(rows)):
        rows[place] = rows[place - 1] if rows[place] is None else rows[place]
    assert [float(found[1]) for found in scores] == pytest.approx(rows, rel=1e-3)


def test_progress_is_a_bar_on_a_terminal(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run = tiny.offline(tmp_path)
    run._progress = True
    run.run()
    assert "6/6" in capfd.readouterr().err


def test_no_time_left_is_told_before_a_few_steps_were_timed(monkeypatch, capfd):
    """The first step compiles, and an evaluation may come before it: an hour of that is no pace."""
    clock = iter([1000.0, 1001.0, 1002.0, 1003.0, 1004.0])
    monkeypatch.setattr(logs.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(logs, "_QUIET_S", 0.0)
    bar = logs.Progress(10, 0)
    for step in range(1, 6):
        bar.update(step, {})
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["step 1/10", "step 2/10", "step 3/10", "step 4/10  0:06 left", "step 5/10  0:05 left"]


def test_of_what_nobody_knows_the_end_only_the_count_is_told(monkeypatch, capfd):
    monkeypatch.setattr(logs, "_QUIET_S", 0.0)
    logs.Progress(0, 0, what="encoded rows").advance(3)
    assert capfd.readouterr().err == "encoded rows 3\n"


def test_a_second_signal_ends_the_process(monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    request = StopRequest()
    request(15, None)
    assert request.asked and not ended
    assert "after this step, or the evaluation in progress, and saving; again to exit" in capfd.readouterr().err
    request(15, None)
    assert ended == [143]


def test_the_loop_knows_no_method_and_no_modality():
    text = Path(trainer.__file__).read_text().lower()
    methods = "dpo d3po ddpo ppo rwr sft mapo ipo lora"
    things = "image picture video music token diffusion flow unet transformer guidance_scale"
    assert [word for word in f"{methods} {things}".split() if re.search(rf"\b{word}\b", text)] == []
    assert len(text.splitlines()) <= 400
    assert set(config.TrainingSettings.model_fields) == {
        name for name in config.TrainingSettings.model_fields if name in _read_in_training()
    }


def _read_in_training() -> str:
    folder = Path(trainer.__file__).parent
    return "".join(path.read_text() for path in folder.glob("*.py")) + "micro_batch_size"


# --- on a real pipeline -----------------------------------------------------------------------------------------------


def pipeline_policy():
    import copy

    from palate.config import LoraSettings
    from palate.models.diffusion import DiffusionPolicy
    from tests import zoo

    policy = DiffusionPolicy(copy.deepcopy(zoo.build("sd15")))
    adapters.add_lora(policy, LoraSettings(rank=2))
    return policy


def pipeline_run(folder: Path, kind: str, device: str = "cpu", **changes) -> trainer.Trainer:
    """Three steps of a method on a tiny Stable Diffusion, wired as a recipe is."""
    from palate import sampling
    from palate.algorithms import d3po, diffusion_dpo
    from palate.training.offline import Offline
    from palate.training.online import Online
    from palate.training.sources import Drawing, PreferenceRow

    policy, chosen = pipeline_policy(), tiny.settings(max_steps=3, learning_rate=1e-3, **changes)
    policy.pipeline.to(device)
    place = torch.device(device)
    common = {"batch_size": 4, "micro_batch_size": 2, "device": place}
    if kind == "offline":
        algorithm, options = diffusion_dpo, diffusion_dpo.Config(beta_dpo=200.0)
        likes = tiny.preference_rows(tiny.TinyPolicy(), 5)
        draw = torch.Generator().manual_seed(0)
        rows = [
            PreferenceRow(
                row.id, row.prompt, torch.randn(2, *policy.latent_shape, generator=draw),
                policy.condition([row.prompt]).to("cpu"), row.prefer, row.votes, row.scores, row.mask,
            )
            for row in likes
        ]  # fmt: skip
        source = Offline(rows, policy.condition([""]).to(place), Drawing(0, policy.path, 0.2), **common)
        reference = adapters.reference_of(policy, "base")
    else:
        algorithm, options, reference = d3po, d3po.Config(), None
        source = Online(
            ["red", "blue", "green"],
            partial(sampling.rollout, policy, num_inference_steps=3, guidance_scale=3.0),
            lambda prompts, media: {"size": torch.arange(len(prompts)).double()},
            lambda made, feedback, state: d3po.prepare(made, feedback, state, options),
            policy.kernel(1.0),
            k=2,
            prompts_per_round=2,
            context=lambda: optimisation.autocast(chosen, place),
            **common,
        )
    return trainer.Trainer(
        policy, algorithm, options, source, chosen, folder, reference=reference, progress=False, tensorboard=False
    )


@pytest.mark.parametrize("kind", ["offline", "online"])
def test_a_pipeline_trains_resumes_and_exports(kind, tmp_path):
    pipeline_run(tmp_path / "straight", kind).run()
    stopped = pipeline_run(tmp_path / "cut", kind, checkpoint_every=1)
    advance = stopped._advance

    def interrupted(stop):
        if stopped.step == 2:
            raise KeyboardInterrupt
        advance(stop)

    stopped._advance = interrupted
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    pipeline_run(tmp_path / "cut", kind, checkpoint_every=1).run()
    rows = rows_of(tmp_path / "cut")
    assert rows == rows_of(tmp_path / "straight") and rows[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    one, two = (forks.fingerprint(tmp_path / name)["adapter"] for name in ("straight", "cut"))
    assert one == two
