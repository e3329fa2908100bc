"""Checks of what a caption asks for, on the generator's own pictures, which are as asked, and on others."""

import numpy as np

from palate.worlds import shapes
from palate.worlds.shapes import checks, data, flow


def test_true_pictures_are_correct_and_others_are_not():
    scenes, pictures = data.dataset(150, 5, None)
    texts = [data.caption(scene) for scene in scenes]
    found = checks.load()(texts, pictures)
    assert tuple(found) == checks.DIMENSIONS == checks.Checks.dimensions
    whole = np.array([not any(o.deformed for o in scene.objects) for scene in scenes])
    assert found["correct"][whole].mean() > 0.97
    one = np.array([checks.category(text) == "one thing" for text in texts])
    assert np.isnan(found["position"][one]).all() and not np.isnan(found["position"][~one]).any()
    turned = checks.Checks()([texts[i - 1] for i in range(150)], pictures)
    assert turned["correct"].mean() < 0.05 and turned["colour"].mean() < 0.5


def test_each_attribute_is_its_own_check():
    scenes, pictures = data.dataset(400, 6, None)
    k = next(
        i
        for i, s in enumerate(scenes)
        if s.relation == "left of" and s.mark is None and not any(o.deformed for o in s.objects)
    )
    text = data.caption(scenes[k])
    swapped = text.replace("left of", "right of")
    first, second = (checks.Checks()([t], [pictures[k]]) for t in (text, swapped))
    assert first["correct"][0] == 1 and second["correct"][0] == 0
    assert second["position"][0] == 0 and second["objects"][0] == second["background"][0] == 1


def test_captions_have_categories():
    texts = {
        "a large green square on grey": "one thing",
        "a small red star left of a large blue circle on white": "left or right",
        "a small red star below a large blue circle on white": "above or below",
    }
    assert {text: shapes.category(text) for text in texts} == texts
    assert flow.category is shapes.category
