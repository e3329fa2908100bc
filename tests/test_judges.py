"""Scorers by name: what is read of it, what is refused, and the golden check that each must pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palate.config import ConfigError
from palate.doors import golden, judges, lookup
from palate.models.pretrained import PretrainedError
from palate.plugins import PluginError
from tests.scorers import parts


@pytest.mark.parametrize(
    ("name", "plugin", "where", "options"),
    [
        ("jpeg_size", "jpeg_size", "", {}),
        ("pickscore:/models/a", "pickscore", "/models/a", {}),
        ("clip_score:openai/clip-vit-large-patch14", "clip_score", "openai/clip-vit-large-patch14", {}),
        ("clap:/m,rate:44100,dtype:float16", "clap", "/m", {"rate": "44100", "dtype": "float16"}),
        ("clap,rate:44100", "clap", "", {"rate": "44100"}),
        ("http:https://h.example:1/a,b", "http", "https://h.example:1/a,b", {}),
        ("my_lab.judges:sharp,limit:3", "my_lab.judges:sharp", "", {"limit": "3"}),
        ("my_lab.judges", "my_lab.judges", "", {}),
    ],
)
def test_a_name_is_read(name, plugin, where, options):
    read = judges.parse(name)
    assert (read.plugin, read.where, dict(read.options)) == (plugin, where, options)


@pytest.mark.parametrize(
    ("name", "scorer", "dimension"),
    [
        ("jpeg_size", "jpeg_size", ""),
        ("jpeg_size/jpeg_size", "jpeg_size", "jpeg_size"),
        ("world:shapes/alignment", "world:shapes", "alignment"),
        ("my_lab.judges:sharp/edge", "my_lab.judges:sharp", "edge"),
        ("pickscore:/models/a", "pickscore:/models/a", ""),
        ("http:127.0.0.1:8765,dimension:quality", "http:127.0.0.1:8765", "quality"),
        ("x:/m,dtype:float16,dimension:a/b,frames:2", "x:/m,dtype:float16,frames:2", "a/b"),
    ],
)
def test_a_dimension_is_split_off(name, scorer, dimension):
    assert judges.split(name) == (scorer, dimension)


def test_a_judge_is_loaded_from_where_its_name_says_once(tmp_path):
    folder, _ = parts.clip(tmp_path / "clip")
    name = f"clip_score:{folder},batch_size:2,dtype:bfloat16"
    scorer = lookup.find_scorer(name)
    assert scorer is lookup.find_scorer(name)
    whole = lookup.weighted({name: 2.0, f"pickscore:{folder}": 1.0, "jpeg_size": -1.0})
    media = parts.pictures(3)
    given = whole(parts.PROMPTS, media)
    np.testing.assert_allclose(given["clip_score"], 2 * scorer(parts.PROMPTS, media)["clip_score"])
    assert set(given) == {"clip_score", "pickscore", "jpeg_size"}
    one = lookup.weighted({f"pickscore:{folder},dimension:pickscore": 3.0})
    np.testing.assert_allclose(one(parts.PROMPTS, media)["pickscore"], 3 * given["pickscore"])


def test_an_option_of_the_wrong_kind_or_name_is_one_line(tmp_path):
    cases = {
        "jpeg_size:much": "quality: input should be a valid integer",
        "pickscore:/m,dtype:int8": "dtype: input should be 'float32', 'float16' or 'bfloat16'",
        "pickscore:/m,size:3": "no option size; pickscore takes model, device, dtype, batch_size, frames",
        "pickscore:/m,frames:1,frames:2": "the option frames is given twice",
        "tests.test_judges:spread,limit:3": "takes no options",
    }
    for name, said in cases.items():
        with pytest.raises(ConfigError) as caught:
            lookup.find_scorer(name)
        assert said in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(PluginError, match="pickscoer"):
        lookup.find_scorer("pickscoer:/models/a")
    with pytest.raises(PretrainedError, match="there is no folder"):
        lookup.find_scorer(f"pickscore:{tmp_path}/none")
    assert lookup.find_scorer("jpeg_size:50").quality == 50


def test_a_dimension_that_is_not_given_is_named(tmp_path):
    folder, _ = parts.clip(tmp_path / "clip")
    with pytest.raises(ConfigError, match="gives no score 'pick'; it gives pickscore"):
        lookup.weighted({f"pickscore:{folder},dimension:pick": 1.0}).check(["a cat"])


# --- the golden check -------------------------------------------------------------------------------------------------


def brightness(prompts, media):
    return {"x": np.array([np.asarray(medium).mean() for medium in media])}


def spread(prompts, media):
    return {
        "x": np.array([np.asarray(medium).std() + len(prompt) for prompt, medium in zip(prompts, media, strict=True)])
    }


class Judge:
    """A scorer of a function of the matrix's rows."""

    reads_prompts = True

    def __init__(self, function):
        self._function = function

    def __call__(self, prompts, media):
        return self._function(prompts, media)


def test_scorers_that_tell_things_apart_pass():
    golden.check("b", brightness)
    golden.check("s", Judge(spread))
    golden.check("s", lookup.find_scorer("jpeg_size"))


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        (lambda p, m: {"x": np.full(len(m), 3.5)}, "gives 3.5 to everything"),
        (lambda p, m: {"x": [len(prompt) for prompt in p]}, "it judges the prompt alone"),
        (Judge(brightness), "the same score whatever its prompt"),
        (lambda p, m: {"x": brightness(p, m)["x"][:1]}, r"scores of shape \(1,\) of x for 4 media"),
        (lambda p, m: {"x": torch.softmax(torch.tensor(brightness(p, m)["x"]) / 50, 0)}, "depend on the batch"),
        (lambda p, m: {"x": spread(p, m)["x"][::-1]}, "depend on the batch"),
        (lambda p, m: {"x": brightness(p, m)["x"], "y": np.zeros(len(m))}, "scorer odd, y gives 0 to everything"),
    ],
)
def test_scorers_that_do_not_are_refused(scorer, said):
    with pytest.raises(ConfigError, match=said) as caught:
        golden.check("odd", scorer)
    assert "\n" not in str(caught.value)


def test_a_scorer_may_say_that_it_is_not_to_be_checked():
    def constant(prompts, media):
        raise AssertionError("asked")

    constant.golden = None
    golden.check("c", constant)


def test_a_scorer_for_other_things_is_not_refused():
    def videos(prompts, media):
        return {"x": [len(list(medium)) for medium in media]}

    golden.check("v", videos)
    golden.check("n", lambda p, m: {"x": [np.nan] * len(m)})
    with pytest.raises(TypeError):
        golden.check("v", Judge(videos))


def test_a_noisy_judge_is_not_taken_for_one_that_looks_at_the_batch():
    dice = np.random.default_rng(0)
    golden.check("noisy", lambda p, m: {"x": dice.normal(size=len(m))})


def test_the_check_is_made_where_scorers_are_found():
    with pytest.raises(ConfigError, match=r"scorer tests.test_judges:same gives 1 to everything"):
        lookup.weighted({"tests.test_judges:same": 1.0})


def same(prompts, media):
    return {"x": np.ones(len(media))}


def test_broken_weights_are_found_before_anything_is_made(tmp_path):
    folder, model = parts.clip(tmp_path / "clip")
    with torch.no_grad():
        model.visual_projection.weight[1:] = model.visual_projection.weight[:1]
        model.vision_model.post_layernorm.weight.zero_()
    model.save_pretrained(folder)
    with pytest.raises(ConfigError, match="pictures as unlike as can be"):
        lookup.find_scorer(f"pickscore:{folder}")


def test_a_sound_judge_is_asked_for_sounds(tmp_path):
    from tests.scorers import test_clap

    folder, _, _ = test_clap.build(tmp_path / "clap", fused=False)
    scorer = lookup.find_scorer(f"clap:{folder}")
    assert scorer.judges == ("sounds",)
