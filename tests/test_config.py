"""Recipes: what is read is what was meant, and everything else is one line that says what to mend."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.config import (
    ConfigError,
    LoraSettings,
    Recipe,
    Strict,
    TrainingSettings,
    difference,
    dump,
    load,
    section,
)

RECIPE = """\
model:
  name: world:shapes
algorithm:
  name: diffusion_dpo
  beta_dpo: 500
data:
  path: world:shapes
training:
  learning_rate: 1e-4
  mixed_precision: no
output: runs/shapes
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def refusal(path, *overrides, schema=Recipe):
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, schema)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_recipe_is_read(recipe):
    found = load(recipe, [], Recipe)
    assert found.model.name == "world:shapes"
    assert found.model.lora == LoraSettings()
    assert found.algorithm.options == {"beta_dpo": 500}
    assert found.training.learning_rate == 1e-4  # PyYAML reads 1e-4 as a string
    assert found.training.mixed_precision == "no"  # and a bare no as false
    assert found.rollout is None


def test_overrides_win_and_the_last_of_them(recipe):
    given = ["training.max_steps=5", "training.max_steps=7", "model.lora.rank=4", "algorithm.beta_dpo=1e3"]
    found = load(recipe, given, Recipe)
    assert (found.training.max_steps, found.model.lora.rank) == (7, 4)
    assert float(found.algorithm.options["beta_dpo"]) == 1e3
    assert load(recipe, ["model.lora=null"], Recipe).model.lora is None
    assert load(recipe, ["model.lora=null", "model.lora.rank=2"], Recipe).model.lora.rank == 2


def test_scorers_by_dotted_path_are_one_key(recipe):
    online = ["data=null", "rollout.prompts=[a, b]", "rollout.scorers.my.lab:sharp=0.5", "rollout.scorers.jpeg_size=1"]
    found = load(recipe, online, Recipe)
    assert found.rollout.scorers == {"my.lab:sharp": 0.5, "jpeg_size": 1.0}
    assert found.rollout.prompts == ["a", "b"]
    one = load(recipe, [*online, "rollout.scorers.world:shapes/alignment=2"], Recipe)
    assert one.rollout.scorers["world:shapes/alignment"] == 2.0


def test_what_is_dumped_is_read_back_equal(recipe, tmp_path):
    before = load(recipe, ["training.adam_epsilon=1e-12", "algorithm.note='no'"], Recipe)
    dump(before, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml", [], Recipe) == before
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


@given(rate=st.floats(1e-12, 1.0), steps=st.integers(1, 10**9), text=st.text("abc: #'\"{}[]\n-é", min_size=1))
def test_any_value_survives_the_file(tmp_path_factory, rate, steps, text):
    before = Recipe.model_validate(
        {
            "model": {"name": text},
            "algorithm": {"name": "sft"},
            "data": {"path": text},
            "training": {"learning_rate": rate, "max_steps": steps},
            "output": text,
        }
    )
    path = tmp_path_factory.mktemp("dumped") / "config.yaml"
    dump(before, path)
    assert load(path, [], Recipe) == before


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.max_step=5", ["'training.max_step'", "did you mean 'training.max_steps'?"]),
        ("learning_rate=1", ["unknown key 'learning_rate'", "did you mean 'training.learning_rate'?"]),
        ("zzz=1", ["unknown key 'zzz'", "known here: model, algorithm"]),
        ("model.lora.rnk=3", ["'model.lora.rnk'", "'model.lora.rank'"]),
        ("training.max_steps=abc", ["'training.max_steps' should be a valid integer", "not abc"]),
        ("training.max_steps=true", ["'training.max_steps' should be a number"]),
        ("training.max_steps=1.5", ["fractional part"]),
        ("training.weight_decay=.inf", ["finite"]),
        ("training.lr_schedule=wavy", ["'constant', 'linear' or 'cosine'", "not wavy"]),
        ("training.micro_batch_size=3", ["not a multiple of micro_batch_size"]),
        ("model.lora.rank=0", ["greater than or equal to 1"]),
        ("model=null", ["'model' should be a section with keys, not null"]),
        ("output=", ["'output'", "not null"]),
        ("data=null", ["either 'data'", "or 'rollout'"]),
        ("rollout.k=2", ["'rollout.prompts' is missing; add it"]),
        ("model.name.x=1", ["'model.name' is 'world:shapes' and has no keys of its own"]),
        ("training.max_steps", ["section.key=value"]),
        ("=5", ["section.key=value"]),
        ("training.seed=[1", ["not valid YAML"]),
    ],
)
def test_an_override_that_cannot_be_is_one_line(recipe, override, parts):
    message = refusal(recipe, override)
    for part in parts:
        assert part in message


def test_an_error_says_where_it_stands(recipe):
    assert refusal(recipe, "training.seed=x").startswith("override 'training.seed=x'")
    recipe.write_text(RECIPE.replace("learning_rate", "learning_rte"))
    assert refusal(recipe).startswith(f"{recipe} line 9: unknown key 'training.learning_rte'; did you mean")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty; it needs the sections model, algorithm"),
        ("# only a remark\n", "is empty"),
        ("- a\n- b\n", "holds a list, not sections"),
        ("just words\n", "holds a str"),
        ("model: {name: a\n", "line 2: not valid YAML"),
        ("model: !!python/object:os.system {}\n", "not valid YAML"),
        ("\x00", "not valid YAML"),
        (RECIPE + "output: elsewhere\n", "line 12: 'output' is given twice (first on line 11)"),
        (RECIPE.replace("name: world:shapes\n", "name: a\n  name: b\n"), "line 3: 'model.name' is given twice"),
        (RECIPE.replace("model:\n  name: world:shapes\n", ""), "'model' is missing"),
        ("5: a\n" + RECIPE, "5"),
    ],
)
def test_a_file_that_cannot_be_is_one_line(recipe, text, part):
    recipe.write_text(text)
    message = refusal(recipe)
    assert part in message
    assert str(recipe) in message


def test_a_file_that_is_not_there(recipe, tmp_path):
    assert f"did you mean {recipe}?" in refusal(tmp_path / "recipes.yaml")
    assert "does not exist" in refusal(tmp_path / "no" / "such.yaml")
    assert "is a folder" in refusal(tmp_path)
    recipe.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal(recipe)


def test_several_problems_are_all_told_and_typos_come_first(recipe):
    message = refusal(recipe, "training.seed=x", "training.sead=1", "evaluation.prompts=3")
    first, *others = message.split("; and ")
    assert "unknown key 'training.sead'" in first
    assert [key for other in others for key in ("'training.seed'", "'evaluation.prompts'") if key in other] == [
        "'training.seed'",
        "'evaluation.prompts'",
    ]


def test_what_only_follows_from_a_change_is_no_change_of_its_own(recipe):
    was, longer = load(recipe, ["training.max_steps=100"], Recipe), load(recipe, ["training.max_steps=1000"], Recipe)
    assert was.training.evaluate_every != longer.training.evaluate_every
    assert was.changes(longer) == ["training.max_steps: 100 -> 1000"]
    own = load(recipe, ["training.max_steps=1000", "training.evaluate_every=7"], Recipe)
    assert was.changes(own) == ["training.max_steps: 100 -> 1000", "training.evaluate_every: 10 -> 7"]


# --- sections of others -----------------------------------------------------------------------------------------------


class Options(Strict):
    beta: float = 1.0
    clip: float | None = None


def test_a_section_is_checked_in_the_same_words():
    assert section({"beta": "1e-4"}, Options, "algorithm").beta == 1e-4
    with pytest.raises(ConfigError, match=r"^r.yaml: unknown key 'algorithm.bta'; did you mean 'algorithm.beta'\?$"):
        section({"bta": 1}, Options, "algorithm", "r.yaml")
    with pytest.raises(ConfigError, match=r"'algorithm.clip' should be a number"):
        section({"clip": True}, Options, "algorithm")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        TrainingSettings().seed = 3


def test_difference_names_each_key(recipe):
    a = load(recipe, [], Recipe)
    assert difference(a, a) == []
    b = load(recipe, ["training.seed=5", "model.lora=null", "algorithm.x=[1, 2]"], Recipe)
    assert difference(a, b) == [
        "model.lora: {rank: 16, alpha: 16.0, targets: null} -> null",
        "algorithm.x: (absent) -> [1, 2]",
        "training.seed: 0 -> 5",
    ]
    assert difference({"a": {"b": 1}}, {"a": {}}) == ["a.b: 1 -> (absent)"]
    assert difference({"a": 1}, {"a": True}) == ["a: 1 -> true"]


def test_every_setting_says_what_it_is():
    def fields(model):
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(kind, type) and issubclass(kind, Strict):
                    yield from fields(kind)

    assert [name for name, field in fields(Recipe) if not field.description] == []


def test_an_offline_run_stops_early_unless_told_not_to(recipe):
    found = load(recipe, ["training.max_steps=200"], Recipe)
    assert (found.training.evaluate_every, found.training.early_stopping) == (20, 3)
    told = load(recipe, ["training.max_steps=200", "training.early_stopping=0"], Recipe)
    assert (told.training.evaluate_every, told.training.early_stopping) == (20, 0)
    online = ["data=null", "rollout.prompts=[a, b]", "rollout.scorers.jpeg_size=1"]
    assert load(recipe, online, Recipe).training.early_stopping is None


EVALUATED = ["evaluation.prompts=[c]", "evaluation.scorers.jpeg_size=1", "training.max_steps=64"]
ONLINE = ["data=null", "rollout.prompts=[a, b]", "rollout.scorers.jpeg_size=1"]


@pytest.mark.parametrize("how", [ONLINE, ["data.held_out=0"]])
def test_what_can_be_evaluated_is(recipe, how):
    assert load(recipe, [*how, *EVALUATED], Recipe).training.evaluate_every == 6
    assert load(recipe, [*how, *EVALUATED, "training.evaluate_every=9"], Recipe).training.evaluate_every == 9
    assert load(recipe, [*how, *EVALUATED, "training.max_steps=3"], Recipe).training.evaluate_every == 1
    assert load(recipe, how, Recipe).training.evaluate_every is None


def test_early_stopping_needs_something_to_judge_by(recipe):
    with pytest.raises(ConfigError, match=r"needs preferences kept aside: data.held_out above 0"):
        load(recipe, ["data.held_out=0", "training.early_stopping=3"], Recipe)
