"""CLIP score and PickScore against their formulas in float64, on a tiny CLIP read from its folder."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from palate.models import pixels
from palate.models.pretrained import PretrainedError
from palate.scorers import clip_score, hpsv2, pickscore
from tests import zoo
from tests.scorers import parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parts.clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def cosines(folder):
    """[prompts, pictures] of `parts.PROMPTS` and `parts.pictures()`, by the whole model in float64."""
    path, model = folder
    double = copy.deepcopy(model).double()
    processor = CLIPImageProcessorPil.from_pretrained(path)
    values = processor(parts.pictures(), return_tensors="pt")["pixel_values"].double()
    words = parts.clip_tokenizer(24)(parts.PROMPTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        out = double(input_ids=words["input_ids"], attention_mask=words["attention_mask"], pixel_values=values)
        logits = out.logits_per_text / double.logit_scale.exp()
    return logits.numpy()


def pairs():
    """All prompts with all pictures, as two lists in the order of a matrix's rows."""
    media = parts.pictures()
    return [prompt for prompt in parts.PROMPTS for _ in media], media * len(parts.PROMPTS)


@pytest.mark.parametrize("size", [1, 5, 32])
def test_the_formulas_whatever_the_batch(folder, cosines, size):
    assert (cosines > 0).any() and (cosines < 0).any() and cosines.std() > 0.01
    wanted = cosines.flatten()
    given = clip_score.load(str(folder[0]), batch_size=size)(*pairs())
    np.testing.assert_allclose(given["clip_score"], 100 * np.maximum(wanted, 0), rtol=0, atol=2e-4)
    given = pickscore.load(str(folder[0]), batch_size=size)(*pairs())
    np.testing.assert_allclose(given["pickscore"], np.exp(2.5) * wanted, rtol=0, atol=3e-5)


def test_order_follows_the_rows(folder):
    scorer = pickscore.load(str(folder[0]), batch_size=4)
    prompts, media = pairs()
    there = scorer(prompts, media)["pickscore"]
    back = scorer(prompts[::-1], media[::-1])["pickscore"]
    np.testing.assert_allclose(back[::-1], there, atol=1e-5)
    assert len(set(there.round(4))) == len(there)


def test_a_video_scores_the_mean_of_its_frames(folder):
    scorer = pickscore.load(str(folder[0]), batch_size=3)
    frames = parts.pictures(5)
    each = scorer(["two cats"] * 5, frames)["pickscore"]
    array = np.stack([np.asarray(frame) for frame in frames])
    given = scorer(["two cats"] * 4, [frames, frames[0], array, torch.from_numpy(array / 255.0)])["pickscore"]
    np.testing.assert_allclose(given, [each.mean(), each[0], each.mean(), each.mean()], atol=1e-5)
    for most, places in ((3, [0, 2, 4]), (1, [2]), (5, range(5))):
        few = pickscore.load(str(folder[0]), frames=most)(["two cats"], [frames])["pickscore"]
        np.testing.assert_allclose(few, each[list(places)].mean(), atol=1e-5)


def test_half_precision_is_near_and_keeps_the_scale(folder):
    exact = pickscore.load(str(folder[0]))(*pairs())["pickscore"]
    half = pickscore.load(str(folder[0]), dtype="bfloat16")(*pairs())["pickscore"]
    assert 0 < np.abs(half - exact).max() < 0.25
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(pickscore.load(str(folder[0]))(*pairs())["pickscore"], exact)


def test_a_long_prompt_is_cut_and_said_once(folder, caplog):
    scorer = clip_score.load(str(folder[0]))
    media = parts.pictures(2)
    with caplog.at_level(logging.WARNING):
        short = scorer(["a red circle"] * 2, media)["clip_score"]
        assert not caplog.records
        long = "abcdefghij " * 20
        first = scorer([long, "a red circle"], media)["clip_score"]
        again = scorer([long + "and more", "a red circle"], media)["clip_score"]
    assert [record.getMessage() for record in caplog.records] == [
        f"clip_score reads 24 tokens of a prompt; longer ones are cut: {long!r:.60}..."
    ]
    assert first[1] == pytest.approx(short[1], abs=1e-4)
    np.testing.assert_array_equal(first, again)


def test_nothing_to_judge_is_no_score(folder):
    assert clip_score.load(str(folder[0]))([], [])["clip_score"].shape == (0,)


def test_what_cannot_be_judged_is_refused(folder):
    scorer = clip_score.load(str(folder[0]))
    picture = parts.pictures(1)[0]
    with pytest.raises(ValueError, match="row 1 is a str"):
        scorer(["a", "b"], [picture, "a text"])
    with pytest.raises(ValueError, match="row 0 is a list"):
        scorer(["a"], [[]])
    with pytest.raises(ValueError, match="2 prompts for 1 media"):
        scorer(["a", "b"], [picture])


def test_scores_that_are_no_numbers_are_refused(folder, tmp_path):
    _, model = folder
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.visual_projection.weight[0, 0] = torch.nan
    broken.save_pretrained(tmp_path)
    parts.clip_tokenizer(24).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"no finite score for 2 of 2 media, row 0 first .*'a red circle'.*dtype:float32"
    ):
        clip_score.load(str(tmp_path))(["a red circle"] * 2, parts.pictures(2))


def test_the_wrong_folder_is_one_line(folder, tmp_path):
    cases = {
        str(tmp_path / "none"): "there is no folder",
        "nowhere": "there is no folder nowhere",
        str(tmp_path): "holds no CLIPModel",
        str(folder[0] / "model.safetensors"): "is a file; give the folder",
        "owner/never-fetched": "owner/never-fetched holds no CLIPModel",
    }
    for where, said in cases.items():
        with pytest.raises(PretrainedError) as caught:
            clip_score.load(where)
        assert said in str(caught.value) and "\n" not in str(caught.value) and "clip_score" in str(caught.value)


def test_another_models_folder_is_not_filled_up_with_random_numbers(folder, tmp_path):
    _, model = folder
    model.text_model.config.save_pretrained(tmp_path)
    model.text_model.save_pretrained(tmp_path)
    parts.clip_tokenizer(24).save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match=r"holds no CLIPModel") as caught:
        clip_score.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_one_line(folder, tmp_path):
    folder[1].save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match="holds no tokenizer") as caught:
        clip_score.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_tokenizer_of_another_model_is_refused(folder, tmp_path):
    folder[1].save_pretrained(tmp_path)
    more = parts.clip_tokenizer(24)
    more.add_tokens(["another"])
    more.save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match="the tokenizer has 515 tokens and the model knows 514"):
        clip_score.load(str(tmp_path))
    other = zoo.causal_lm()[1]
    other.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(PretrainedError, match="ends a text with token 256 and the model's end is 513"):
        hpsv2.load(str(folder[0]), tokenizer=str(tmp_path / "gpt2"))


def test_a_pickle_is_never_read(folder, tmp_path):
    folder[1].config.save_pretrained(tmp_path)
    parts.clip_tokenizer(24).save_pretrained(tmp_path)
    torch.save(folder[1].state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(PretrainedError, match="holds no CLIPModel in safetensors"):
        clip_score.load(str(tmp_path))


# --- pictures to pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 33), (28, 28), (20, 61), (224, 300), (9, 9)])
@pytest.mark.parametrize("how", [{}, {"size": 32, "crop_size": 28}, {"size": {"shortest_edge": 28}, "resample": 2}])
def test_pixels_are_those_of_transformers(tmp_path, size, how):
    held = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}} | how
    processor = CLIPImageProcessorPil(**held)
    processor.save_pretrained(tmp_path)
    media = parts.pictures(2, size)
    wanted = processor(media, return_tensors="pt")["pixel_values"]
    made = pixels.of_folder(str(tmp_path), 28)(media)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, wanted.float(), rtol=0, atol=1e-5)


def test_settings_that_cannot_be_reached_are_not_guessed():
    with pytest.raises(OSError, match=r"preprocessor_config\.json|offline|cache"):
        pixels.of_folder("owner/never-fetched", 28)


def test_oblong_preprocessing_is_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"do_center_crop": false, "size": {"shortest_edge": 28}}')
    with pytest.raises(ValueError, match="keeps pictures oblong"):
        pixels.of_folder(str(tmp_path), 28)


def test_grey_and_transparent_pictures_are_read_as_colour():
    prepare = pixels.Pixels(28, 28)
    grey = Image.new("L", (30, 30), 77)
    torch.testing.assert_close(prepare([grey]), prepare([grey.convert("RGB")]))
    assert prepare([Image.new("RGBA", (30, 40), (1, 2, 3, 255))]).shape == (1, 3, 28, 28)
