"""Rows come once, in an order and with draws that depend on the seed alone; rounds survive what goes wrong in them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from palate.models.contracts import State, TransitionBatch, select
from palate.paths import FlowPath
from palate.training import sources
from palate.training.offline import Offline
from palate.training.online import Online
from palate.training.processes import Processes
from tests import toys
from tests.training import tiny

POLICY = tiny.TinyPolicy()
SHAPE = (2, 1, 2, 2)  # of a row's candidates


def offline(n: int = 10, rows=None, rank: int = 0, world: int = 1, **options) -> Offline:
    rows = rows or tiny.preference_rows(POLICY, n)
    drawing = sources.Drawing(options.pop("seed", 0), POLICY.path, options.pop("drop", 0.0))
    options = {"batch_size": 4, "processes": Processes(rank, world), **options}
    return Offline(rows, POLICY.condition([""]), drawing, **options)


def taken(source: Offline, steps: int) -> list[list[tuple[str, int]]]:
    """(id, visit) of each step's rows."""
    out = []
    for _ in range(steps):
        feed = source.next(State())
        if feed is None:
            break
        rows = [(batch.ids, batch.visits.tolist()) for batch, _ in feed.micros()]
        out.append([pair for ids, visits in rows for pair in zip(ids, visits, strict=True)])
    return out


# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [POLICY.path, FlowPath()])
def test_a_rows_draw_is_its_own(path):
    ids, visits = [f"row {i}" for i in range(6)], [0, 0, 3, 1, 0, 2]
    drawing = sources.Drawing(7, path, 0.5)
    whole = drawing(ids, visits, SHAPE)
    order = [4, 1, 5]
    part = drawing([ids[i] for i in order], [visits[i] for i in order], SHAPE)
    assert torch.equal(part.t, whole.t[order])
    assert torch.equal(part.noise, whole.noise[order]) and torch.equal(part.drop, whole.drop[order])
    others = [(ids, [v + 1 for v in visits], 7), (ids, visits, 8), ([f"{i}'" for i in ids], visits, 7)]
    for names, counts, seed in others:
        assert not (sources.Drawing(seed, path)(names, counts, SHAPE).noise == whole.noise).any()


def test_draws_have_the_right_distribution():
    draw = sources.Drawing(0, POLICY.path, 0.2)([str(i) for i in range(4000)], [0] * 4000, SHAPE)
    assert abs(draw.noise.mean()) < 0.03 and abs(draw.noise.std() - 1) < 0.02
    assert abs(draw.t.float().mean() - 499.5) < 20 and draw.t.min() < 5 and draw.t.max() > 994
    assert abs(draw.drop.float().mean() - 0.2) < 0.03


def test_candidates_may_have_a_noise_each_whatever_is_filled_up():
    drawing = sources.Drawing(0, POLICY.path, shared_noise=False)
    two, three = (drawing(["a", "b"], [0, 1], (k, 1, 2, 2)) for k in (2, 3))
    assert two.noise.shape == (2, 2, 1, 2, 2) and torch.equal(three.noise[:, :2], two.noise)
    assert not (two.noise[:, 0] == two.noise[:, 1]).any()
    assert torch.equal(two.t, sources.Drawing(0, POLICY.path)(["a", "b"], [0, 1], SHAPE).t)


def test_a_row_may_have_few_draws_that_come_in_turn():
    draw = sources.Drawing(0, POLICY.path, visits=3)(["a"] * 7, range(7), SHAPE)
    assert torch.equal(draw.noise[:3], draw.noise[3:6]) and torch.equal(draw.noise[0], draw.noise[6])
    assert len(draw.t.unique()) == 3


def test_times_may_be_drawn_from_another_density():
    only = sources.Drawing(0, POLICY.path, times=lambda n, generator: torch.full((n,), 249))(["a", "b"], [0, 0], SHAPE)
    assert only.t.tolist() == [249, 249]


# --- offline ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_comes_once_an_epoch_over_all_processes(world):
    steps = [taken(offline(rank=rank, world=world), 9) for rank in range(world)]
    for epoch in range(3):
        rows = [pair for rank in steps for step in rank[3 * epoch : 3 * epoch + 3] for pair in step]
        assert Counter(rows) == Counter({(f"prompt {i}", epoch): 1 for i in range(10)})
    alone = taken(offline(), 9)
    assert [sorted(row for rank in steps for row in rank[i]) for i in range(9)] == [sorted(step) for step in alone]


def test_epochs_differ_in_order_and_seeds_too():
    names = [name for step in taken(offline(seed=1), 9) for name, _ in step]
    assert names[:10] != names[10:20] != names[20:] and sorted(names[:10]) == sorted(names[10:20])
    assert taken(offline(seed=1), 9) == taken(offline(seed=1), 9) != taken(offline(seed=2), 9)


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_restored_source_goes_on_where_it_was(cut):
    """At the last batch of an epoch, in the second epoch, twice in one epoch."""
    straight = taken(offline(), 9)
    source = offline()
    for i in range(cut):
        assert taken(source, 1) == [straight[i]]
        other = offline()
        other.restore(source.state())
        source = other
    assert taken(source, 9 - cut) == straight[cut:]


def test_a_number_of_epochs_ends_it():
    assert len(taken(offline(epochs=2), 99)) == 6


def test_feeds_can_be_read_twice_and_micro_batches_are_the_batch():
    source = offline(micro_batch_size=3, drop=0.5)
    small, large = source.next(State()), offline(drop=0.5).next(State())
    assert [len(batch) for batch, _ in small.micros()] == [3, 1]
    for _ in range(2):
        noise = torch.cat([draw.noise for _, draw in small.micros()])
        drop = torch.cat([draw.drop for _, draw in small.micros()])
        batch, draw = next(large.micros())
        assert torch.equal(noise, draw.noise) and torch.equal(drop, draw.drop)
        assert torch.equal(torch.cat([batch.x0 for batch, _ in small.micros()]), batch.x0)


def test_held_out_prompts_are_never_trained_on_and_their_draws_are_fixed():
    rows = [replace(row, prompt=f"prompt {i % 5}") for i, row in enumerate(tiny.preference_rows(POLICY, 20))]
    source = offline(rows=rows, held_out_share=0.3, validation_visits=2)
    aside = {rows[i].prompt for i in source.validation_rows}
    assert len(aside) == 2 and aside.isdisjoint({rows[i].prompt for i in source.train_rows})
    first = [draw.noise for _, draw in source.validation().micros()]
    taken(source, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(first, (d.noise for _, d in source.validation().micros()), strict=True)
    )
    ids = [name for batch, _ in source.validation().micros() for name in batch.ids]
    assert Counter(ids) == Counter({rows[i].id: 2 for i in source.validation_rows})
    train = sources.Drawing(0, POLICY.path)([rows[0].id], [0], SHAPE)
    assert not any((noise == train.noise).any() for noise in first)


def test_rows_that_cannot_be_stacked_go_into_different_micro_batches():
    rows = tiny.preference_rows(POLICY, 6)
    rows[2] = replace(rows[2], x0=torch.zeros(2, 1, 4, 4))
    rows[5] = replace(rows[5], x0=torch.zeros(2, 1, 4, 4))
    feed = offline(rows=rows, batch_size=6).next(State())
    shapes = {tuple(batch.x0.shape[2:]): set(batch.ids) for batch, _ in feed.micros()}
    assert shapes[(1, 4, 4)] == {"prompt 2", "prompt 5"} and len(shapes[(1, 2, 2)]) == 4


def test_fewer_candidates_are_filled_up_and_masked():
    rows = [tiny.preference_rows(POLICY, 1, k=k)[0] for k in (2, 4)]
    batch = sources.collate(rows, [0, 0], POLICY.condition([""]))
    assert batch.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.prefer[0, 2:].isnan().all() and batch.prefer[0, :, 2:].isnan().all() and batch.prefer[0, 0, 1] == 1
    assert (batch.votes[0, 2:] == 0).all() and batch.scores[0, 2:].isnan().all() and (batch.x0[0, 2:] == 0).all()


def test_no_rows_is_an_error():
    with pytest.raises(sources.SourceError, match="no preferences"):
        Offline([], POLICY.condition([""]), sources.Drawing(0, POLICY.path), batch_size=2)


# --- online -----------------------------------------------------------------------------------------------------------


def online(scorer=tiny.brightness, prepare=None, **options) -> Online:
    from palate.algorithms import d3po

    options = {"k": 2, "prompts_per_round": 3, "batch_size": 4, "inner_epochs": 2, **options}
    return Online(
        tiny.PROMPTS,
        lambda prompts, ids, seed: tiny.roll_out(POLICY, prompts, ids, seed=seed),
        scorer,
        prepare or (lambda rollout, feedback, state: d3po.prepare(rollout, feedback, state, d3po.Config())),
        toys.kernel_of(POLICY),
        **options,
    )


def steps_of(source: Online, count: int) -> list[tuple[torch.Tensor, ...]]:
    out = []
    for _ in range(count):
        feed = source.next(State())
        if feed is None:
            break
        batches = [batch for batch, draw in feed.micros()]
        out.append(tuple(torch.cat([getattr(b, name) for b in batches]) for name in ("x_t", "x_prev", "t", "signal")))
    return out


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    )


def test_a_round_is_trained_on_for_its_epochs_each_transition_once():
    steps = steps_of(online(), 6)  # 3 prompts x 3 steps of the sampler = 9 rows: 4 + 4 + 1, twice
    assert [len(step[0]) for step in steps] == [4, 4, 1] * 2
    first, second = (torch.cat([step[0] for step in half]).flatten(1) for half in (steps[:3], steps[3:]))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, second.sort(0).values)


def test_prompts_differ_by_round_and_are_distinct_within_one():
    seen: list[list[str]] = []

    def prepare(rollout, feedback, state):
        seen.append(rollout.prompts)
        return toys_batch(rollout)

    steps_of(online(prepare=prepare, inner_epochs=1, batch_size=99), 5)
    assert all(len(set(prompts)) == 3 and prompts == sorted(prompts) for prompts in seen)
    assert all(Counter(prompts) == Counter(dict.fromkeys(prompts, 2)) for prompts in seen)
    assert len({tuple(prompts) for prompts in seen}) > 1


def toys_batch(rollout) -> TransitionBatch:
    from palate import sampling

    candidate, step = sampling.transitions_of(rollout, torch.arange(len(rollout)))
    return sampling.transition_batch(rollout, candidate[:, None], step, torch.ones(len(step), 1))


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_restored_round_goes_on_with_its_samples(cut):
    straight = steps_of(online(), 9)
    source = online()
    before = steps_of(source, cut)
    other = online()
    other.restore(source.state())
    assert same([*before, *steps_of(other, 9 - cut)], straight)


def test_rounds_end_it():
    assert len(steps_of(online(rounds=2), 99)) == 12


def test_failed_scores_are_counted_and_never_trained_on():
    scores = iter([[1.0, 2.0, float("nan"), 4.0, 6.0, 5.0]])
    seen = {}

    def prepare(rollout, feedback, state):
        seen.update(feedback)
        return toys_batch(rollout)

    feed = online(lambda prompts, media: {"beauty": next(scores)}, prepare).next(State())
    assert feed.metrics["round/failed"] == (1.0, 1.0) and feed.metrics["samples/beauty"] == (18.0, 5.0)
    assert seen["beauty"].isnan().tolist() == [False, False, True, False, False, False]
    feed = online(lambda prompts, media: {"beauty": [1.0, 2.0, float("nan"), 4.0, 6.0, 5.0]}).next(State())
    (batch, _), *rest = feed.micros()
    pending = {int(c) for b in [batch, *(b for b, _ in rest)] for c in b.candidate.flatten()}
    assert pending <= {0, 1, 4, 5}


def test_a_scorer_of_the_wrong_length_and_rounds_of_nothing_are_errors():
    with pytest.raises(sources.SourceError, match=r"\(5,\) values of 'beauty' for 6 samples"):
        online(lambda prompts, media: {"beauty": [1.0] * 5}).next(State())
    with pytest.raises(sources.SourceError, match="10 rounds in a row"):
        online(lambda prompts, media: {"beauty": [1.0] * 6}).next(State())
    with pytest.raises(sources.SourceError, match="8 different prompts"):
        online(prompts_per_round=9)
    with pytest.raises(sources.SourceError, match="cannot be shared by 7"):
        online(processes=SimpleNamespace(world=7))


def test_on_round_comes_before_sampling():
    order: list[str] = []
    source = online(on_round=lambda index: order.append(f"round {index}"))
    rollout = source._rollout
    source._rollout = lambda *args, **kwargs: (order.append("sample"), rollout(*args, **kwargs))[1]
    steps_of(source, 7)
    assert order == ["round 0", "sample", "round 1", "sample"]


def test_only_what_rows_point_to_moves_to_a_device():
    source = online()
    batch = next(source.next(State()).micros())[0]
    one = sources.to_device(select(batch, torch.tensor([1])), torch.device("cpu"))
    assert len(one.x) == 6  # nothing is copied on the CPU
    fake = SimpleNamespace(type="cuda")
    real = torch.Tensor.to
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", lambda self, *a, **k: self if a and a[0] is fake else real(self, *a, **k))
        small = sources.to_device(select(batch, torch.tensor([1])), fake)
    assert len(small.x) == 2 == len(small.cond) and small.candidate.tolist() == [[0, 1]]
    assert torch.equal(small.x_t, one.x_t) and torch.equal(small.logps, one.logps)


# --- what it is made of -----------------------------------------------------------------------------------------------


def changed(rows, index: int = 3, **fields):
    return [*rows[:index], replace(rows[index], **fields), *rows[index + 1 :]]


def test_a_run_does_not_go_on_with_other_data():
    rows = tiny.preference_rows(POLICY, 6, k=3)
    begun = offline(rows=rows).state()
    offline(rows=tiny.preference_rows(POLICY, 6, k=3)).restore(begun)
    with pytest.raises(
        sources.SourceError, match=r"not those the run began with \(6 rows then, 5 now\): put them back"
    ):
        offline(rows=rows[:5]).restore(begun)
    with pytest.raises(sources.SourceError, match="2 of 6 rows differ, first that of 'prompt 2'"):
        offline(rows=[rows[0], rows[2], rows[1], *rows[3:]]).restore(begun)


def test_a_run_does_not_go_on_with_other_facts_about_the_same_prompts():
    rows = tiny.preference_rows(POLICY, 6, k=3)
    begun = offline(rows=rows).state()
    row = rows[3]
    for other in (
        {"prefer": 1 - row.prefer},
        {"votes": row.votes + 1},
        {"scores": row.scores + 1e-3},
        {"mask": torch.tensor([True, True, False])},
        {"weight": 2.0},
        {"id": "another"},
    ):
        with pytest.raises(sources.SourceError, match="1 of 6 rows differ, first that of 'prompt 3'"):
            offline(rows=changed(rows, **other)).restore(begun)


def test_a_run_goes_on_with_pictures_encoded_elsewhere_and_not_with_others():
    """bfloat16 on another device differs in the third digit; one of three pictures changed is another picture."""
    rows = tiny.preference_rows(POLICY, 40, k=3)
    rows = [replace(row, x0=row.x0.repeat(1, 4, 8, 8)) for row in rows]
    begun = offline(rows=rows).state()
    offline(rows=[replace(row, x0=row.x0.bfloat16().float()) for row in rows]).restore(begun)
    for index, row in enumerate(rows):
        for other in (row.x0.flip(-1), row.x0.roll(1, 0), row.x0 * 1.2, torch.cat([row.x0[:2], -row.x0[2:]])):
            with pytest.raises(sources.SourceError, match="1 of 40 rows differ"):
                offline(rows=changed(rows, index, x0=other)).restore(begun)
    spoilt = changed(rows, x0=torch.full_like(rows[3].x0, torch.nan))
    offline(rows=spoilt).restore(offline(rows=spoilt).state())


def test_a_round_does_not_go_on_with_other_prompts():
    source = online()
    other = Online(
        [*tiny.PROMPTS, "another"], source._rollout, tiny.brightness, source._prepare, source._kernel,
        k=2, prompts_per_round=3, batch_size=4,
    )  # fmt: skip
    with pytest.raises(sources.SourceError, match="the prompts are not those the run began with: put them back"):
        other.restore(source.state())


# --- what it teaches --------------------------------------------------------------------------------------------------


def only(*ids: str):
    """An algorithm's `lacking` that learns from some rows."""
    return lambda batch: "" if set(batch.ids) & set(ids) else "no pair is decided"


def test_rows_of_which_none_teaches_anything_are_refused():
    source = offline(5)
    with pytest.raises(sources.SourceError, match="nothing to learn from these 5 rows: no pair is decided"):
        source.check(only())
    assert source.check(only("prompt 4")) == [] and online().check(only()) == []
    rows = [replace(row, weight=0.0) for row in tiny.preference_rows(POLICY, 5)]
    with pytest.raises(sources.SourceError, match="nothing to learn from these 5 rows: they all weigh 0"):
        offline(rows=rows).check(lambda batch: "")


def test_held_out_rows_that_say_nothing_or_little_are_warned_of():
    rows = [replace(row, prompt=f"prompt {i // 2}") for i, row in enumerate(tiny.preference_rows(POLICY, 60))]
    source = offline(rows=rows, held_out_share=0.4)
    held = [rows[i].id for i in source.validation_rows]
    train = rows[source.train_rows[0]].id
    assert len(held) == 24  # two each of twelve prompts
    assert source.check(only(train, *held)) == [] == source.check(only(train, *held[:20]))
    (few,) = source.check(only(train, *held[:18]))
    assert "only 9 prompts, fewer than 10" in few and "data.held_out" in few
    (none,) = source.check(only(train))
    assert "none of the 24 held-out rows" in none and "no pair is decided" in none


def test_rows_are_read_no_further_than_to_the_first_that_teaches():
    class Rows(list):
        read = 0

        def __getitem__(self, index):
            self.read += 1
            return super().__getitem__(index)

    rows = Rows(tiny.preference_rows(POLICY, 10))
    source = offline(rows=rows, prompts=[f"prompt {i}" for i in range(10)])
    source.check(only("prompt 2", "prompt 7"))
    assert rows.read == 3


def test_a_round_says_what_takes_long():
    source, said = online(rounds=2), []
    source.note = said.append
    steps_of(source, 9)
    rounds = [f"sampling round {i} of 2: 6 samples" for i in (1, 2)]
    assert said == [rounds[0], "scoring round 1 of 2", rounds[1], "scoring round 2 of 2"]
