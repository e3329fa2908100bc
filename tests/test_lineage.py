"""Judges of an earlier training are no judges held out, however far back it lies."""

import json

import yaml

from palate.doors import lineage


def run(folder, model, **sections):
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"name": str(model)}, **sections}))
    return folder


def test_rewards_of_all_that_a_model_came_from(tmp_path):
    data = tmp_path / "synthesized"
    data.mkdir()
    (data / "synthesis.json").write_text(json.dumps({"scorers": {"pickscore:a": 1.0, "jpeg_size": -1.0}}))
    first = run(tmp_path / "first", "base", data={"path": str(data)})
    second = run(tmp_path / "second", first, rollout={"scorers": {"clip_score:b": 1.0, "jpeg_size": 1.0}})
    third = run(tmp_path / "third", second, rounds={"scorers": {"world:shapes/safety": 1.0}}, data=None)
    assert lineage.rewards(str(first)) == ["pickscore:a", "jpeg_size"]
    assert set(lineage.rewards(str(second))) == {"clip_score:b", "jpeg_size", "pickscore:a"}
    assert lineage.rewards(str(third))[0] == "world:shapes/safety" and len(lineage.rewards(str(third))) == 4
    tuned = run(tmp_path / "tuned", "base", data={"relabel": {"hpsv2:c": 1.0}})
    tuned_on = run(tmp_path / "tuned_on", "base")
    recipe = {"model": {"name": "base", "adapter": str(tuned / "adapter")}, "data": {"path": "synthesized"}}
    assert set(lineage.of_recipe(recipe, tmp_path)) == {"hpsv2:c", "pickscore:a", "jpeg_size"}
    assert lineage.rewards(str(tuned_on)) == lineage.rewards("a/hub-model") == []


def test_folders_that_name_each_other_end(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    run(a, b, rollout={"scorers": {"x": 1.0}})
    run(b, a, rollout={"scorers": {"y": 1.0}})
    assert sorted(lineage.rewards(str(a))) == ["x", "y"]
