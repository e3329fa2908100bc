"""Which picture was preferred, from the page to the loss: sides are random, and none may be swapped on the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from starlette.testclient import TestClient

from palate import losses
from palate.datasets import parquet
from palate.doors.giving import export
from palate.doors.labelling import win_rates_so_far
from palate.project import ProjectSettings, create
from palate.records import Comparison, Medium, Sample, now
from palate.store import Store
from palate.studio.app import create as create_app

from . import make
from .pages import browsing, shades, state


def build(folder, n: int) -> Store:
    """n prompts with two grey pictures each, the brighter from either source; one rater each."""
    create(folder, ProjectSettings(known_share=0, repeat_share=0, votes_per_comparison=1))
    store = Store.open(folder)
    pairs = [make.brighter_first(i) for i in range(n)]
    shades = {shade for both in pairs for shade in both}
    media = {shade: store.add_media(make.picture(shade), "image/png") for shade in shades}
    store.add_samples(
        Sample(f"s{i}-{j}", f"prompt {i}", Medium("image/png", path=media[shade].path), f"model-{j}", now())
        for i, both in enumerate(pairs)
        for j, shade in enumerate(both)
    )
    store.add_comparisons(Comparison(f"c{i}", f"prompt {i}", (f"s{i}-0", f"s{i}-1"), 1) for i in range(n))
    return store


def check(folder, out, n: int) -> None:
    """Every exported row prefers the brighter, as the loader reads it and as the loss understands it."""
    export(folder, out)
    rows = list(parquet.read(out))
    assert len(rows) == n
    brightness, prefer = [], []
    for row in rows:
        brightness.append([make.shade_of(medium.bytes) for medium in row.media])
        prefer.append(row.prefer)
    lit, told = torch.tensor(brightness, dtype=torch.float32), torch.tensor(prefer)
    assert (told[:, 0, 1] == (lit[:, 0] > lit[:, 1]).float()).all()
    assert 0.2 < told[:, 0, 1].mean() < 0.8  # position tells nothing
    towards, _ = losses.dpo(lit / 100, torch.zeros_like(lit), told, beta=1.0)
    away, _ = losses.dpo(-lit / 100, torch.zeros_like(lit), told, beta=1.0)
    assert (towards < losses.start_of("sigmoid", 1.0)).all() and (away > losses.start_of("sigmoid", 1.0)).all()


def annotate(store: Store, n: int, people: int) -> list[str]:
    """Votes for the brighter of each pair over HTTP, by what the pictures that are served look like; sides chosen."""
    seen: dict[str, int] = {}
    sides: list[str] = []

    def judge(rater: make.Person) -> None:
        while leases := rater.lease(16):
            for lease in leases:
                for medium in lease["media"]:
                    if medium["id"] not in seen:
                        seen[medium["id"]] = make.shade_of(rater.get(f"/media/{medium['id']}").content)
                left, right = (seen[medium["id"]] for medium in lease["media"])
                side = "left" if left > right else "right"
                assert rater.answer(lease["id"], f"key-{lease['id']}", overall=side).json()["status"] == "saved"
                sides.append(side)

    with TestClient(create_app(store), base_url=make.BASE) as client, ThreadPoolExecutor(people) as pool:
        for done in [pool.submit(judge, make.person(client, store, f"rater {i}")) for i in range(people)]:
            done.result()
    assert len(sides) == n
    return sides


@pytest.mark.parametrize("n", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_brighter_wins_from_http_to_the_loss(tmp_path, n):
    with build(tmp_path / "p", n) as store:
        sides = annotate(store, n, people=1 if n < 100 else 16)
        assert abs(sides.count("left") / n - 0.5) < 2 / n**0.5  # four deviations: once in 16,000
        if n == 40:
            wins = {won.source: won for won in win_rates_so_far(store)}
            brighter = sum(first > second for first, second in (make.brighter_first(i) for i in range(n)))
            assert wins["model-0"].rate == pytest.approx(brighter / n) and wins["model-0"].n == n
    check(tmp_path / "p", tmp_path / "out", n)


@pytest.mark.browser
@pytest.mark.parametrize("n", [8, pytest.param(300, marks=pytest.mark.slow)])
def test_the_brighter_wins_from_the_key_to_the_loss(tmp_path, chromium, n):
    with build(tmp_path / "p", n) as store, make.served(store) as base:
        _, token = store.add_rater("Ada")
        with browsing(chromium, base, token) as page:
            for turn in range(n):
                left, right = shades(page)
                keys = ("1", "ArrowLeft") if left > right else ("2", "ArrowRight")
                page.keyboard.press(keys[turn % 2])  # without a wait for the answers before to be saved
            state(page, f"{n} saved")
    check(tmp_path / "p", tmp_path / "out", n)
