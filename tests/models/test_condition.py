"""Conditions of one length are one tensor; of several, parts that behave like one."""

from __future__ import annotations

import torch

from palate.models.condition import Condition


def of(length: int, n: int, *, start: int = 0) -> Condition:
    rows = torch.arange(start, start + n).float().view(n, 1).expand(n, length)
    shared = {"cond/ids": torch.zeros(length, 3)}
    return Condition({"cond/tokens": rows.clone(), "uncond/tokens": -rows}, shared)


def numbers(cond: Condition) -> list[tuple[int, float]]:
    """Length and content of every row."""
    rows = [cond[row].rows["cond/tokens"][0] for row in range(len(cond))]
    return [(len(row), float(row[0])) for row in rows]


def test_one_length_is_one_tensor() -> None:
    made = Condition.cat([of(2, 2), of(2, 1, start=5)])
    assert not made.parts
    assert made.rows["cond/tokens"][:, 0].tolist() == [0, 1, 5]


def test_several_lengths_keep_their_order() -> None:
    made = Condition.cat([of(2, 2), of(3, 1, start=5), of(2, 1, start=7)])
    assert numbers(made) == [(2, 0), (2, 1), (3, 5), (2, 7)]
    assert len(made.parts) == 2
    assert made.guided
    assert numbers(made[[3, 2, 2]]) == [(2, 7), (3, 5), (3, 5)]
    assert numbers(made[1:3]) == [(2, 1), (3, 5)]
    again = Condition.cat([made[[2, 0]], of(3, 1, start=9), made])
    assert numbers(again) == [(3, 5), (2, 0), (3, 9), (2, 0), (2, 1), (3, 5), (2, 7)]


def test_rows_of_one_part_are_a_plain_condition() -> None:
    made = Condition.cat([of(2, 2), of(3, 1, start=5)])
    assert not made[[1, 0]].parts
    assert made[[1, 0]].rows["cond/tokens"][:, 0].tolist() == [1, 0]
    assert made[2].key == of(3, 1).key


def test_groups_are_the_rows_of_each_part() -> None:
    made = Condition.cat([of(2, 1), of(3, 1, start=5), of(2, 1, start=7)])
    found = [(where.tolist(), part.rows["cond/tokens"][:, 0].tolist()) for where, part in made.groups()]
    assert found == [([0, 2], [0, 7]), ([1], [5])]


def test_a_row_may_be_replaced_by_one_of_another_length() -> None:
    null = of(1, 1, start=9)
    mask = torch.tensor([True, False])
    assert numbers(of(2, 2).where(mask, null)) == [(1, 9), (2, 1)]
    assert numbers(of(2, 2).where(mask, of(2, 1, start=9))) == [(2, 9), (2, 1)]
    mixed = Condition.cat([of(2, 1), of(3, 1, start=5)])
    assert numbers(mixed.where(mask, null)) == [(1, 9), (3, 5)]


def test_entries_of_a_branch() -> None:
    mixed = Condition.cat([of(2, 1), of(3, 1)])
    assert mixed.guided
    assert not mixed.only("cond/").guided
    assert numbers(mixed.only("cond/")) == numbers(mixed)


def test_keys_tell_large_shared_tensors_apart() -> None:
    ids = torch.zeros(4000)
    other = ids.clone()
    other[2000] = 1
    assert Condition({}, {"cond/ids": ids}).key != Condition({}, {"cond/ids": other}).key
    assert Condition({}, {"cond/ids": [ids, 1]}).key == Condition({}, {"cond/ids": [ids.clone(), 1]}).key
