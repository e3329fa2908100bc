"""The generator: captions invert, splits are apart, scenes are what they say, drawing is a function of the seed."""

import itertools

import numpy as np
import pytest

from palate.worlds.shapes import data


def test_every_caption_is_parsed_back_and_all_are_distinct():
    every = data.requests()
    assert len(every) == len({str(r) for r in every}) > 20_000
    assert all(data.parse_caption(str(request)) == request for request in every)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a large red circle", "background"),
        ("a large red circle on mauve", "background 'mauve'"),
        ("a huge red circle on white", "size 'huge'"),
        ("a large pink circle on white", "colour 'pink'"),
        ("a large red hexagon on white", "shape 'hexagon'"),
        ("a large red circle beside a small blue star on white", "beside"),
        ("large red circle on white", "large red circle"),
        ("a large red circle above a small red star on white", "one colour"),
        ("", "background"),
    ],
)
def test_bad_captions_name_the_part(text, part):
    with pytest.raises(ValueError, match=part):
        data.parse_caption(text)


def test_splits_are_disjoint_and_mirrored_captions_stay_together():
    train, held = set(data.requests("train")), set(data.requests("eval"))
    assert not train & held and len(train) + len(held) == len(data.requests())
    assert 0.15 < len(held) / len(data.requests()) < 0.25
    left = "a small red star left of a large blue circle on white"
    right = "a large blue circle right of a small red star on white"
    assert data.split(left) == data.split(right)
    assert {data.split(c) for c in data.captions(1500, 3, "eval")} == {"eval"}


def test_captions_are_distinct_and_seeded():
    first = data.captions(500, 1)
    assert len(set(first)) == 500
    assert first == data.captions(500, 1) != data.captions(500, 2)
    with pytest.raises(ValueError, match="distinct"):
        data.captions(10**6, 0)


def test_dataset_is_a_function_of_the_seed():
    scenes, pictures = data.dataset(70, 5)
    again, same = data.dataset(70, 5)
    assert scenes == again and (pictures == same).all()
    assert pictures.shape == (70, 64, 64, 3) and pictures.dtype == np.uint8
    assert (data.render(scenes[66]) == pictures[66]).all()
    assert all(data.split(data.caption(s)) == "train" for s in scenes)
    assert (data.dataset(70, 6)[1] != pictures).any()


def test_flaws_come_in_their_shares():
    scenes, _ = data.dataset(1500, 8, None)
    assert abs(np.mean([s.mark is not None for s in scenes]) - 0.20) < 0.035
    assert abs(np.mean([any(o.deformed for o in s.objects) for s in scenes]) - 0.15) < 0.035
    assert abs(np.mean([s.style == "outlined" for s in scenes]) - 0.50) < 0.045
    clean, _ = data.dataset(50, 8, None, data.Flaws(0, 0, 0))
    assert all(s.mark is None and s.style == "flat" and not any(o.deformed for o in s.objects) for s in clean)


def test_objects_lie_as_asked_inside_and_apart():
    grid = np.arange(64, dtype=np.float32) + 0.5
    for scene in data.dataset(300, 9, None)[0]:
        fields = [data.distance(o.shape, [o], grid)[0] for o in scene.objects]
        for field in fields:
            assert min(field[0].min(), field[-1].min(), field[:, 0].min(), field[:, -1].min()) > 0.5
        if len(fields) == 2:
            assert (np.maximum(*fields) > 1).all()  # outlines of 1.5 px included, no pixel belongs to both
            a, b = scene.objects
            along = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
            aside = abs(b.y - a.y) if scene.relation in ("left of", "right of") else abs(b.x - a.x)
            assert along[scene.relation] >= 2 * aside


def test_colours_and_backgrounds_are_far_apart():
    palette = np.array([*data.COLOURS.values(), *data.BACKGROUNDS.values(), data.INK], float)
    least = min(np.linalg.norm(a - b) for a, b in itertools.combinations(palette, 2))
    assert least > 60


def test_a_request_can_be_drawn_at_will():
    request = data.parse_caption("a large green square above a small cyan star on grey")
    scene = data.sample_scene(np.random.default_rng(0), request=request)
    assert scene.request == request and data.caption(scene) == str(request)
