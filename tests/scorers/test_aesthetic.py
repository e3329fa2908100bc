"""LAION's aesthetic predictor against its formula in float64, as one file and as a head beside its CLIP."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from palate.models.pretrained import PretrainedError
from palate.scorers import aesthetic
from tests.scorers import parts

HEAD = parts.head(20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Tower and head in one safetensors file, as the hub's copy has them."""
    path = tmp_path_factory.mktemp("aesthetic") / "whole"
    config = CLIPVisionConfig(**parts.clip_config(514).vision_config.to_dict())
    tower = parts.scatter(CLIPVisionModelWithProjection(config))
    tower.save_pretrained(path)
    state = load_file(path / "model.safetensors")
    parts.saved(path / "model.safetensors", state | HEAD)
    held = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(held | {"model_type": "aesthetics_predictor"}))
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28).save_pretrained(path)
    return path, tower


@pytest.fixture(scope="module")
def wanted(whole):
    path, tower = whole
    values = CLIPImageProcessorPil.from_pretrained(path)(parts.pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        made = copy.deepcopy(tower).double()(pixel_values=values.double()).image_embeds.numpy()
    return parts.through_head(HEAD, parts.normal(made))


def test_the_formula(whole, wanted):
    assert np.std(wanted) > 0.01
    for scorer in parts.each_size(aesthetic.load, whole[0]):
        given = scorer(["whatever", "is", "asked", "for"], parts.pictures())["aesthetic"]
        np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scorer([""] * 4, parts.pictures()[::-1])["aesthetic"][::-1], wanted, atol=1e-5)


def test_the_head_alone_goes_with_a_clip(tmp_path):
    folder, model = parts.clip(tmp_path / "clip")
    parts.saved(tmp_path / "head.safetensors", HEAD)
    values = CLIPImageProcessorPil.from_pretrained(folder)(parts.pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        made = copy.deepcopy(model).double().get_image_features(pixel_values=values.double()).pooler_output.numpy()
    scorer = aesthetic.load(str(tmp_path / "head.safetensors"), clip=str(folder))
    given = scorer([""] * 4, parts.pictures())["aesthetic"]
    np.testing.assert_allclose(given, parts.through_head(HEAD, parts.normal(made)), rtol=0, atol=1e-5)


def test_half_precision_is_near(whole, wanted):
    given = aesthetic.load(str(whole[0]), dtype="bfloat16")([""] * 4, parts.pictures())["aesthetic"]
    assert 0 < np.abs(given - wanted).max() < 0.05


def test_a_pickle_is_refused_with_the_lines_that_convert_it_which_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(HEAD, "sac+logos+ava1-l14-linearMSE.pth")
    with pytest.raises(PretrainedError, match=r"is a pickle.*convert it first: python -c") as caught:
        aesthetic.load(str(tmp_path / "sac+logos+ava1-l14-linearMSE.pth"))
    assert aesthetic.CONVERT in str(caught.value) and "\n" not in str(caught.value)
    exec(aesthetic.CONVERT.removeprefix('python -c "').removesuffix('"'), {})
    made = load_file("aesthetic.safetensors")
    assert made.keys() == HEAD.keys() and all(torch.equal(made[name], HEAD[name]) for name in HEAD)


def test_weights_that_cannot_be_fetched_are_one_line():
    with pytest.raises(PretrainedError, match=r"there is no .*/model\.safetensors to be had") as caught:
        aesthetic.load()
    assert "\n" not in str(caught.value)


def test_a_head_that_does_not_fit_is_one_line(whole, tmp_path):
    folder, _ = parts.clip(tmp_path / "clip")
    cases = {
        "reads embeddings of 12 numbers and the CLIP .* makes 20": parts.head(12),
        "lacks weight layers.6.bias": {name: w for name, w in HEAD.items() if name != "layers.6.bias"},
        "it lacks weight layers.0.weight": {"other": torch.zeros(2)},
        r"weight 1.weight is \(3, 1024\), not \(128, 1024\)": HEAD | {"layers.2.weight": torch.zeros(3, 1024)},
        "has an unknown weight layers.9.weight": HEAD | {"layers.9.weight": torch.zeros(3)},
    }
    for said, state in cases.items():
        path = parts.saved(tmp_path / "head.safetensors", state)
        with pytest.raises(PretrainedError, match=said):
            aesthetic.load(str(path), clip=str(folder))
