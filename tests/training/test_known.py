"""A reference asked beforehand says what a live one would: then no reference is needed, and no copy of its weights."""

from __future__ import annotations

import errno
import json

import pytest
import torch

from palate.algorithms import diffusion_dpo
from palate.durable import StorageError
from palate.training import adapters, known
from palate.training.offline import Offline
from palate.training.processes import Processes
from palate.training.sources import Drawing
from palate.training.trainer import Trainer
from tests.training import tiny

DRAWS = 2
CONFIG = diffusion_dpo.Config(beta_dpo=20.0, prompt_dropout=0.3)


class Killed(BaseException):
    pass


def policy_of(kind: str) -> tiny.TinyPolicy:
    policy = tiny.policy_with_adapter() if kind == "lora" else tiny.TinyPolicy()
    if kind == "full":
        adapters.train_all(policy)
    return policy


def source_of(policy, settings, draws: int | None = DRAWS, rank: int = 0, world: int = 1, **options) -> Offline:
    rows = [row for k in (2, 3) for row in tiny.preference_rows(policy, 7, k=k)]
    rows = [type(row)(**{**vars(row), "id": f"{row.id}/{i}"}) for i, row in enumerate(rows)]
    return Offline(
        rows, policy.condition([""]), Drawing(0, policy.path, CONFIG.prompt_dropout, visits=draws),
        batch_size=settings.batch_size, micro_batch_size=settings.micro_batch_size, held_out_share=0.2,
        processes=Processes(rank, world), **options,
    )  # fmt: skip


def asked_of(policy) -> adapters.Reference | tiny.TinyPolicy:
    return adapters.Reference(policy) if adapters.has_adapter(policy) else policy


def trained(kind: str, folder, *, live: bool, **changes):
    policy, settings = policy_of(kind), tiny.settings(**{"evaluate_every": 4, "batch_size": 4, **changes})
    source = source_of(policy, settings, draws=None if live and changes["max_steps"] <= 6 else DRAWS)
    if not live:
        known.precompute(policy, asked_of(policy), source, settings, folder / "reference")
    Trainer(
        policy, diffusion_dpo, CONFIG, source, settings, folder, progress=False, tensorboard=False,
        reference=adapters.reference_of(policy, "base") if live else None,
    ).run()  # fmt: skip
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, adapters.copy_of(adapters.trainable(policy))


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("micro", [None, 2])
def test_training_is_as_with_a_live_reference(tmp_path, kind, micro):
    """Three batches an epoch of 12 rows: the same bits in the first two epochs, and to rounding in those after."""
    options = {"max_steps": 14, "micro_batch_size": micro}
    live, weights = trained(kind, tmp_path / "live", live=True, **options)
    stored, others = trained(kind, tmp_path / "stored", live=False, **options)
    steps = [row["step"] for row in live]
    assert [row["step"] for row in stored] == steps and {0, 4, 8} <= set(steps)
    assert [row for row in stored if row["step"] <= 6] == [row for row in live if row["step"] <= 6]
    for one, other in zip(live, stored, strict=True):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)
    assert all(torch.allclose(weights[name], others[name], rtol=1e-4, atol=1e-6) for name in weights)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, kind, monkeypatch):
    straight, weights = trained(kind, tmp_path / "straight", live=False, max_steps=9)
    real = Trainer._optimise

    def optimise(self, *args):
        if self.step == 5:  # in the second epoch, a step after a checkpoint
            raise Killed
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_optimise", optimise)
        with pytest.raises(Killed):
            trained(kind, tmp_path / "killed", live=False, max_steps=9)
    monkeypatch.setattr(known, "ask", lambda *_: pytest.fail("the reference was asked again"))
    rows, others = trained(kind, tmp_path / "killed", live=False, max_steps=9)
    assert rows == straight and all(torch.equal(weights[name], others[name]) for name in weights)


def test_draws_that_come_again_are_those_of_the_first_epochs(tmp_path):
    live, _ = trained("full", tmp_path / "live", live=True, max_steps=6)
    assert trained("full", tmp_path / "stored", live=False, max_steps=6)[0] == live


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_stored_errors_are_the_live_ones(tmp_path, kind):
    policy, settings = policy_of(kind), tiny.settings()
    source, live = source_of(policy, settings), source_of(policy, settings)
    known.precompute(policy, asked_of(policy), source, settings, tmp_path)
    seen = 0
    for _ in range(9):  # three epochs
        for (batch, _), (same, draw) in zip(source.next(None).micros(), live.next(None).micros(), strict=True):
            expected = known.ask(asked_of(policy), same, draw, settings)
            torch.testing.assert_close(batch.ref_logps[same.mask], expected[same.mask], rtol=1e-6, atol=0)
            seen += len(batch)
    assert seen == 3 * len(source.train_rows)
    for name in ("validation", "survey"):
        pairs = zip(_micros(source, name), _micros(live, name), strict=True)
        assert all(torch.equal(b.ref_logps, known.ask(asked_of(policy), s, d, settings)) for (b, _), (s, d) in pairs)


def _micros(source, name):
    return source.survey() if name == "survey" else source.validation().micros()


def test_what_a_killed_process_had_asked_is_not_asked_again(tmp_path, monkeypatch):
    policy, settings = policy_of("lora"), tiny.settings()
    real, asked = known.ask, []

    def ask(*args):
        if len(asked) == 5:
            raise Killed
        asked.append(args)
        return real(*args)

    monkeypatch.setattr(known, "ask", ask)
    monkeypatch.setattr(known, "_EVERY_S", 0.0)
    with pytest.raises(Killed):
        known.precompute(policy, asked_of(policy), source_of(policy, settings), settings, tmp_path)
    monkeypatch.setattr(known, "ask", lambda *args: (asked.append(args), real(*args))[1])
    source = source_of(policy, settings)
    known.precompute(policy, asked_of(policy), source, settings, tmp_path)
    whole = len(asked)
    again = source_of(policy, settings)
    known.precompute(policy, asked_of(policy), again, settings, tmp_path)
    assert len(asked) == whole, "all was known"
    asked.clear()
    known.precompute(policy, asked_of(policy), source_of(policy, settings), settings, tmp_path / "anew")
    assert len(asked) <= whole <= len(asked) + 2  # micro-batches of the step in which it was killed
    assert all(torch.equal(again.known.tables[name], source.known.tables[name]) for name in source.known.tables)


@pytest.mark.parametrize("other", ["weights", "batch", "draws", "seed", "drop"])
def test_errors_of_something_else_are_thrown_away(tmp_path, monkeypatch, other):
    policy, settings = policy_of("lora"), tiny.settings()
    known.precompute(policy, asked_of(policy), source_of(policy, settings), settings, tmp_path)
    if other == "weights":
        next(iter(policy.module.parameters())).data += 1e-3
    settings = tiny.settings(batch_size=2) if other == "batch" else settings
    source = source_of(policy, settings, draws=3 if other == "draws" else DRAWS)
    if other in ("seed", "drop"):  # a little more dropout, which none of the few draws that are looked at show
        drawing = Drawing(int(other == "seed"), policy.path, CONFIG.prompt_dropout + 1e-6, visits=DRAWS)
        source = Offline(source._rows, source._null, drawing, batch_size=settings.batch_size)
    real, asked = known.ask, []
    monkeypatch.setattr(known, "ask", lambda *args: (asked.append(args), real(*args))[1])
    known.precompute(policy, asked_of(policy), source, settings, tmp_path)
    assert len(asked) >= len(list(source.recurring())), "all was asked anew"


def test_processes_know_what_the_others_asked(tmp_path, monkeypatch):
    policy, settings = policy_of("lora"), tiny.settings()
    sources = [source_of(policy, settings, rank=rank, world=2) for rank in range(2)]
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    with pytest.raises(OSError, match="process 1"):  # which has not written yet
        known.precompute(policy, asked_of(policy), sources[0], settings, tmp_path)
    for rank in (1, 0):
        known.precompute(policy, asked_of(policy), sources[rank], settings, tmp_path)
    places = [(row, draw) for row in sources[0].train_rows for draw in range(DRAWS)]
    found = [source.known.get("", places, 3) for source in sources]
    assert torch.equal(*found) and bool((found[0][:, :2] < 0).all())


def test_a_row_nobody_asked_about_is_an_error():
    errors = known.KnownErrors()
    errors.put("", [(0, 0)], torch.zeros(1, 2), rows=3, draws=1)
    with pytest.raises(LookupError, match="begin the run anew"):
        errors.get("", [(1, 0)], 2)
    assert errors.get("", [(0, 0)], 4).shape == (1, 4)


def test_a_full_disk_is_told_in_one_line_and_not_filled_further(tmp_path, monkeypatch):
    def save(tables, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(known, "save_file", save)
    with pytest.raises(StorageError, match=r"disk full: .*reference-0\.safetensors .*make room"):
        known._save(tmp_path / "reference-0.safetensors", known.KnownErrors(), "x")
    assert not list(tmp_path.iterdir())
