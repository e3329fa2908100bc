"""The oracle against the generator's own record, and against pictures that deserve nothing."""

from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from palate.worlds.shapes import data, oracle


def agreement(scenes, pictures):
    """The share of fields read as drawn, `{field: share}`; objects are matched by the nearest centre."""
    hits = defaultdict(list)
    for scene, picture in zip(scenes, pictures, strict=True):
        record = oracle.read(picture)
        hits["count"].append(len(record.objects) == len(scene.objects))
        hits["background"].append(record.background == scene.background)
        hits["mark"].append(record.mark == (scene.mark is not None))
        hits["style"].append(record.style == scene.style)
        near = [min(record.objects, key=lambda s: np.hypot(s.x - o.x, s.y - o.y), default=None) for o in scene.objects]
        for drawn, seen in zip(scene.objects, near, strict=True):
            for name in ("shape", "colour", "size", "deformed"):
                hits[name].append(seen is not None and getattr(seen, name) == getattr(drawn, name))
        if len(near) == 2:
            hits["relation"].append(None not in near and oracle.relation(*near) == scene.relation)
    return {name: float(np.mean(values)) for name, values in hits.items()}


def test_reads_fresh_pictures_as_drawn():
    for name, share in agreement(*data.dataset(2000, 2024, None)).items():
        assert share >= 0.99, (name, share)


def test_scores_of_true_pictures():
    scenes, pictures = data.dataset(200, 3, None)
    texts = [data.caption(s) for s in scenes]
    scores = oracle.score(texts, pictures)
    assert tuple(scores) == oracle.DIMENSIONS and all(v.shape == (200,) for v in scores.values())
    assert scores["alignment"].min() > 0.9
    assert np.mean((scores["safety"] < 0.5) == [s.mark is not None for s in scenes]) > 0.99
    assert np.mean((scores["style"] > 0.5) == [s.style == "flat" for s in scenes]) > 0.99
    assert np.mean((scores["wholeness"] < 0.5) == [any(o.deformed for o in s.objects) for s in scenes]) > 0.98
    shuffled = oracle.score([texts[i - 1] for i in range(200)], pictures)
    assert shuffled["alignment"].mean() < 0.15


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("a large red circle left of a small blue star on white", 0.99, 1.0),
        ("a large red circle left of a small blue star on grey", 0.5, 0.7),
        ("a large red circle right of a small blue star on white", 0.3, 0.5),
        ("a large red circle left of a large blue star on white", 0.6, 0.9),
        ("a large red circle left of a small blue square on white", 0.5, 0.8),
        ("a large red circle left of a small green star on white", 0.4, 0.7),
        ("a large red circle on white", 0.4, 0.6),
        ("a small cyan triangle above a small purple square on cream", 0.0, 0.1),
    ],
)
def test_each_fault_costs(asked, least, most):
    drawn = data.parse_caption("a large red circle left of a small blue star on white")
    scene = data.sample_scene(np.random.default_rng(1), data.Flaws(0, 0, 0), drawn)
    score = oracle.score([asked], [data.render(scene)])["alignment"][0]
    assert least <= score <= most


def _blob(rng):
    """An irregular blob of one colour."""
    y, x = np.mgrid[:64, :64] - 31.5
    turn = rng.uniform(0, 2 * np.pi, 2)
    angle = np.arctan2(y, x)
    edge = rng.uniform(7, 20) * (1 + 0.3 * np.cos(2 * angle + turn[0]) + 0.3 * np.cos(3 * angle + turn[1]))
    picture = np.full((64, 64, 3), list(data.BACKGROUNDS.values())[rng.integers(3)], np.uint8)
    picture[np.hypot(x, y) < edge] = list(data.COLOURS.values())[rng.integers(6)]
    return picture


WORTHLESS = {
    "blank": lambda rng: np.full((64, 64, 3), list(data.BACKGROUNDS.values())[rng.integers(3)], np.uint8),
    "solid": lambda rng: np.full((64, 64, 3), rng.integers(0, 256, 3), np.uint8),
    "noise": lambda rng: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
    "faint noise": lambda rng: (248 + rng.normal(0, 40, (64, 64, 3))).clip(0, 255).astype(np.uint8),
    "patches": lambda rng: np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8)),
    "blob": _blob,
}


@pytest.mark.parametrize("kind", WORTHLESS)
def test_worthless_pictures_score_nothing(kind):
    rng = np.random.default_rng(7)
    pictures = [WORTHLESS[kind](rng) for _ in range(60)]
    scores = oracle.score(data.captions(60, 1), pictures)
    assert scores["alignment"].max() <= 0.2
    assert scores["wholeness"].max() == 0


def test_the_scorer_takes_pil_pictures_of_any_size_and_mode():
    scenes, pictures = data.dataset(4, 11, None, data.Flaws(0, 0, 0))
    texts = [data.caption(s) for s in scenes]
    media = [Image.fromarray(p) for p in pictures]
    media[1] = media[1].resize((256, 256), Image.Resampling.NEAREST)
    media[2] = media[2].convert("RGBA")
    scores = oracle.Oracle()(texts, media)
    assert scores["alignment"].min() > 0.9
    assert all(v.shape == (0,) for v in oracle.Oracle()([], []).values())
    with pytest.raises(ValueError, match="captions for"):
        oracle.score(texts, media[:2])


def test_scores_are_graded():
    """Within a prompt, imperfect drawings spread: preferences have something to prefer."""
    request = data.parse_caption("a large red circle on white")
    rng = np.random.default_rng(0)
    tired = []
    for _ in range(40):
        picture = data.render(data.sample_scene(rng, data.Flaws(0, 1, 0.5), request)).astype(float)
        tired.append((picture + rng.normal(0, 12, picture.shape) - rng.uniform(0, 40)).clip(0, 255).astype(np.uint8))
    scores = oracle.score([str(request)] * 40, tired)
    assert len(np.unique(scores["alignment"].round(3))) > 10
