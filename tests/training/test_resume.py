"""kill -9 anywhere, run again: the same bits. Each fault lands inside an operation, by its count, and is proven to."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from palate import durable, remote
from palate.training import adapters, checkpoint, trainer
from palate.training.logs import Logs
from tests import toys
from tests.training import forks, tiny

RUNS = {"offline": tiny.offline, "online": tiny.online}
Hit = Callable[[], None]


def _before(patch: pytest.MonkeyPatch, place: object, name: str, hit: Hit) -> None:
    real = getattr(place, name)
    patch.setattr(place, name, lambda *args, **kwargs: (hit(), real(*args, **kwargs))[1])


def _after(patch: pytest.MonkeyPatch, place: object, name: str, hit: Hit) -> None:
    real = getattr(place, name)
    patch.setattr(place, name, lambda *args, **kwargs: (real(*args, **kwargs), hit())[0])


def _in_backward(patch: pytest.MonkeyPatch, hit: Hit) -> None:
    real = adapters.trainable

    def hooked(policy):
        weights = real(policy)
        first = next(iter(weights.values()))
        if not first._backward_hooks:
            first.register_hook(lambda gradient: hit())
        return weights

    patch.setattr(adapters, "trainable", hooked)


def _half_a_file(patch: pytest.MonkeyPatch, hit: Hit) -> None:
    real = checkpoint.save_file

    def half(tensors, path):
        real(tensors, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        hit()
        path.write_bytes(whole)

    patch.setattr(checkpoint, "save_file", half)


def _half_a_row(patch: pytest.MonkeyPatch, hit: Hit) -> None:
    real = Logs.write

    def write(self, step, metrics, seconds):
        start = self._metrics.tell()
        self._metrics.write('{"step": 99, "lo')
        self._metrics.flush()
        hit()
        os.truncate(self._metrics.fileno(), start)
        real(self, step, metrics, seconds)

    patch.setattr(Logs, "write", write)


def _before_sampling(patch: pytest.MonkeyPatch, hit: Hit) -> None:
    _before(patch, tiny, "roll_out", hit)
    _before(patch, toys, "roll_out", hit)


POINTS: dict[str, Callable[[pytest.MonkeyPatch, Hit], None]] = {
    "in a rollout": _before_sampling,
    "in a forward pass": lambda patch, hit: _before(patch, toys.ToyDenoiser, "_branch", hit),
    "in a backward pass": _in_backward,
    "between optimiser and average": lambda patch, hit: _before(patch, adapters.Ema, "update", hit),
    "half a row logged": _half_a_row,
    "row logged": lambda patch, hit: _after(patch, Logs, "write", hit),
    "half a file written": _half_a_file,
    "all files written": lambda patch, hit: _before(patch, durable, "replace_folder", hit),
    "around an fsync": lambda patch, hit: _after(patch, durable, "fsync", hit),
    "before a rename": lambda patch, hit: _before(patch, Path, "rename", hit),
    "after a rename": lambda patch, hit: _after(patch, Path, "rename", hit),
    "before an old one is removed": lambda patch, hit: _before(patch, durable, "remove_folder", hit),
    "while an old one is removed": lambda patch, hit: _after(patch, shutil, "rmtree", hit),
    "after a save": lambda patch, hit: _after(patch, checkpoint, "save", hit),
    "in the export": lambda patch, hit: _before(patch, trainer, "export", hit),
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> dict[str, dict[str, object]]:
    """Runs that nothing interrupts. One in this process first, so that imports are paid for once."""
    tiny.offline(tmp_path_factory.mktemp("warm")).run()
    out = {}
    for kind, make in RUNS.items():
        folder = tmp_path_factory.mktemp("straight") / kind
        assert forks.in_child(lambda make=make, folder=folder: make(folder).run()) == 0
        out[kind] = forks.fingerprint(folder)
    return out


def events(kind: str, point: str, folder: Path) -> int:
    """How often a run passes the point."""
    count = 0

    def hit() -> None:
        nonlocal count
        count += 1

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            POINTS[point](patch, hit)
            RUNS[kind](folder).run()
        (folder / "count").write_text(str(count))

    assert forks.in_child(work) == 0
    return int((folder / "count").read_text())


def kill_at(kind: str, point: str, number: int, folder: Path) -> int:
    """Runs until the point is passed for the number-th time, and no further."""
    left = number

    def hit() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            POINTS[point](patch, hit)
            RUNS[kind](folder).run()

    return forks.in_child(work)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", RUNS)
def test_killed_once_and_run_again_gives_the_same_bits(kind, point, straight, tmp_path):
    total = events(kind, point, tmp_path / "count")
    if total == 0:
        assert (kind, point) == ("offline", "in a rollout")
        return
    number = random.Random(f"{kind} {point}").randint(1, total)
    folder = tmp_path / "run"
    assert kill_at(kind, point, number, folder) == -signal.SIGKILL
    for path in checkpoint.folders(folder / "checkpoints"):
        checkpoint.verify(path)  # nothing half-written ever stands under a final name
    assert forks.in_child(RUNS[kind](folder).run) == 0
    assert forks.fingerprint(folder) == straight[kind]


@pytest.mark.parametrize("kind", RUNS)
def test_killed_again_and_again(kind, straight, tmp_path):
    """Every attempt dies a little later; between them they finish."""
    statuses = [kill_at(kind, "in a backward pass", number, tmp_path) for number in (2, 3, 3, 2)]
    assert set(statuses) == {-signal.SIGKILL}
    assert forks.in_child(RUNS[kind](tmp_path).run) == 0
    assert forks.fingerprint(tmp_path) == straight[kind]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", RUNS)
def test_a_signal_finishes_the_step_saves_and_exits_75(kind, number, straight, tmp_path, capfd):
    def work() -> None:
        run = RUNS[kind](tmp_path)
        run._progress = True
        real = run._optimise

        def optimise(feed, stop):
            if run.step == 2:
                os.kill(os.getpid(), number)
            return real(feed, stop)

        run._optimise = optimise
        run.run()

    assert forks.in_child(work) == 75
    assert "the same command continues" in capfd.readouterr().err
    assert [path.name for path in checkpoint.folders(tmp_path / "checkpoints")][-1] == "step-00000003"
    assert forks.in_child(RUNS[kind](tmp_path).run) == 0
    end = {name: value for name, value in forks.fingerprint(tmp_path).items() if name != "folders"}
    assert end == {name: value for name, value in straight[kind].items() if name != "folders"}


def test_a_stop_does_not_wait_for_an_evaluation_and_the_next_start_owes_it(tmp_path):
    def make(folder: Path, judge) -> trainer.Trainer:
        run = tiny.offline(folder, evaluate_every=2)
        run._evaluate = judge
        return run

    def judge(step: int) -> dict[str, float]:
        return {"evaluation/x": float(step)}

    make(tmp_path / "straight", judge).run()
    stopped = make(tmp_path / "cut", judge)
    real = stopped._optimise

    def optimise(feed, stop):
        stop.asked = stopped.step == 3
        if stop.asked:
            stopped._evaluate = lambda step: pytest.fail("evaluated")
        return real(feed, stop)

    stopped._optimise = optimise
    with pytest.raises(SystemExit):
        stopped.run()
    make(tmp_path / "cut", judge).run()
    straight, cut = (forks.fingerprint(tmp_path / name) for name in ("straight", "cut"))
    assert {**cut, "folders": None} == {**straight, "folders": None}


def test_a_second_signal_exits_at_once_and_loses_no_saved_step(straight, tmp_path):
    def work() -> None:
        run = tiny.offline(tmp_path)
        real = run._optimise

        def optimise(feed, stop):
            if run.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("still alive")
            return real(feed, stop)

        run._optimise = optimise
        run.run()

    assert forks.in_child(work) == 128 + signal.SIGTERM
    assert forks.in_child(tiny.offline(tmp_path).run) == 0
    assert forks.fingerprint(tmp_path) == straight["offline"]


def test_live_equals_resumed_and_differs_from_resumed_with_weights_alone(tmp_path):
    """The optimiser's memory matters: without it one more step goes elsewhere."""
    whole = tiny.offline(tmp_path / "whole", max_steps=4, lr_schedule="constant")
    whole.run()
    half = tiny.offline(tmp_path / "half", max_steps=4)

    def stopped(trainer_, at):
        real = trainer_._advance

        def advance(stop):
            if trainer_.step == at:
                raise KeyboardInterrupt
            real(stop)

        trainer_._advance = advance

    stopped(half, 2)
    with pytest.raises(KeyboardInterrupt):
        half.run()
    resumed = tiny.offline(tmp_path / "half", max_steps=4)
    shutil.copytree(tmp_path / "half", tmp_path / "bare")
    resumed.run()
    bare = tiny.offline(tmp_path / "bare", max_steps=4)
    restore = bare._restore

    def forget(saved):
        offset = restore(saved)
        bare._optimiser.state.clear()
        return offset

    bare._restore = forget
    bare.run()
    for name, weight in whole.parameters.items():
        assert torch.equal(weight, resumed.parameters[name])
        assert not torch.equal(weight, bare.parameters[name])


def test_a_finished_run_says_the_same_again(tmp_path):
    first = tiny.offline(tmp_path).run()
    before = forks.fingerprint(tmp_path)
    assert tiny.offline(tmp_path).run() == first
    assert forks.fingerprint(tmp_path) == before


def test_metrics_have_every_step_once_and_no_clock(tmp_path):
    kill_at("offline", "in a backward pass", 4, tmp_path)
    tiny.offline(tmp_path).run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert not any("second" in name or "time" in name for row in rows for name in row)


def _failing(real, at: int):
    """What `real` does, but its call of that number ends as if the service behind it were gone."""
    calls = 0

    def call(*args):
        nonlocal calls
        calls += 1
        if calls == at:
            raise remote.Unavailable("the scorer did not answer")
        return real(*args)

    return call


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_scorer_that_is_gone_costs_nothing_but_time(number, straight, tmp_path, capfd):
    """In any round's scoring, also before the first step: saved, left, and run again to the same bits."""

    def work() -> None:
        run = tiny.online(tmp_path, scorer=_failing(tiny.brightness, number))
        run._progress = True
        with pytest.raises(remote.Unavailable, match="did not answer"):
            run.run()

    assert forks.in_child(work) == 0
    assert "all is saved; the same command continues" in capfd.readouterr().err
    saved = checkpoint.folders(tmp_path / "checkpoints")
    assert len(saved) >= 1
    assert forks.in_child(tiny.online(tmp_path).run) == 0
    end = {name: value for name, value in forks.fingerprint(tmp_path).items() if name != "folders"}
    assert end == {name: value for name, value in straight["online"].items() if name != "folders"}


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_judge_that_is_gone_while_looking_on_the_way(number, tmp_path):
    """The step is taken, its row is owed: it is written once, with its evaluation, when the judge is back."""

    def run(folder, evaluate):
        it = tiny.offline(folder, evaluate_every=2, early_stopping=None)
        it._evaluate = evaluate
        it.run()

    judge = lambda step: {"evaluation/reward": float(step)}  # noqa: E731

    def gone() -> None:
        with pytest.raises(remote.Unavailable):
            run(tmp_path / "run", _failing(judge, number))

    assert forks.in_child(lambda: run(tmp_path / "straight", judge)) == 0
    assert forks.in_child(gone) == 0
    assert forks.in_child(lambda: run(tmp_path / "run", judge)) == 0
    first, second = (forks.fingerprint(tmp_path / name) for name in ("straight", "run"))
    assert {k: v for k, v in first.items() if k != "folders"} == {k: v for k, v in second.items() if k != "folders"}
