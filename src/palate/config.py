"""Strict recipes: a YAML file and `a.b=c` overrides become a checked `Recipe`, or one line says what to mend.

    recipe = load("recipes/shapes_diffusion_dpo.yaml", ["training.learning_rate=1e-4"])
    dump(recipe, run_folder / "config.yaml")

Nothing passes silently: an unknown, doubled or misspelt key, a wrong type and a missing section are each an error that
names the file, the line and the dotted key. Only plain YAML values are read, never objects.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ValidationInfo


class ConfigError(ValueError):
    """A recipe cannot be used; the message is one line and says where and what to do."""


class Strict(BaseModel):
    """The base of every settings record: frozen, no unknown keys, no infinities, no booleans where a number belongs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("should be a number, not true or false")
        return value


Settings = TypeVar("Settings", bound=BaseModel)

# --- the schema of a recipe -------------------------------------------------------------------------------------------


def _yaml_no(value: Any) -> Any:
    """YAML 1.1 reads a bare `no` as false; here it is the word."""
    return "no" if value is False else value


Scorers = dict[str, Annotated[float, Field(allow_inf_nan=False)]]
Prompts = str | list[str]


class LoraSettings(Strict):
    """Low-rank adapters: what is trained instead of the whole model."""

    rank: int = Field(16, ge=1, description="Rank of the update of each adapted matrix.")
    alpha: float = Field(16.0, gt=0, description="The update is scaled by alpha / rank.")
    targets: list[str] | None = Field(None, description="Names of adapted layers; null for the attention projections.")


class ModelSettings(Strict):
    """Which model is tuned, and which part of it."""

    name: str = Field(min_length=1, description="A hub id, a local folder, or `world:shapes`.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type of the frozen weights.")
    device: str = Field("auto", min_length=1, description="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.")
    lora: LoraSettings | None = Field(default_factory=LoraSettings, description="Null trains all of the denoiser.")


class AlgorithmSettings(Strict):
    """The name of a file in `palate.algorithms`, or a dotted path; all other keys are that algorithm's own."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1, description="File name in `palate.algorithms`, or a dotted path.")

    @property
    def options(self) -> dict[str, Any]:
        """What is to be checked against the algorithm's own Config."""
        return dict(self.model_extra or {})


class DataSettings(Strict):
    """Preference data for offline training."""

    path: str = Field(min_length=1, description="A folder of preference data, or `world:shapes`.")
    held_out: float = Field(0.05, ge=0, lt=1, description="Share of the prompts kept aside for validation.")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="Share of unreadable rows beyond which to stop.")


class RolloutSettings(Strict):
    """How an online run samples and scores its own candidates."""

    prompts: Prompts = Field(description="A text file of prompts, one a line, or a list of them.")
    scorers: Scorers = Field(min_length=1, description="What is rewarded: scorer name or dotted path, and its weight.")
    prompts_per_round: int = Field(8, ge=1, description="Prompts drawn for a round.")
    k: int = Field(4, ge=1, description="Candidates of each prompt.")
    rounds: int | None = Field(None, ge=1, description="Rounds of sampling and training; null ends by max_steps.")
    inner_epochs: int = Field(1, ge=1, description="Passes over a round's samples before new ones are drawn.")
    batch_size: int = Field(8, ge=1, description="Candidates sampled at once; speed only, never the outcome.")
    num_inference_steps: int = Field(50, ge=1, description="Denoising steps of a sample.")
    guidance_scale: float | None = Field(None, ge=0, description="Classifier-free guidance; null for the model's own.")
    eta: float = Field(1.0, ge=0, description="Noise put back at each step; 0 leaves no likelihood to train on.")


class TrainingSettings(Strict):
    """The one training loop, the same for every algorithm."""

    max_steps: int = Field(1000, ge=1, description="Optimiser steps.")
    batch_size: int = Field(16, ge=1, description="Rows behind one optimiser step, over all processes.")
    micro_batch_size: int | None = Field(None, ge=1, description="Rows in memory at once; null for all of them.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's memory of the gradient.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's memory of its square.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's floor under the root.")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's decoupled decay.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises to its peak.")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="What follows the warm-up.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Gradients are scaled down to it; null for never.")
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_yaml_no)] = Field(
        "no", description="Autocast of the model's passes."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations: slower, with less memory.")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="Moving average of the weights; null for none.")
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="How many of the latest to keep.")
    evaluate_every: int | None = Field(None, ge=1, description="Steps between evaluations; null for none.")
    early_stopping: int | None = Field(None, ge=1, description="Stop after so many evaluations without a gain.")
    seed: int = Field(0, ge=0, description="Of order, draws and adapters: the same seed gives the same run.")

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size")
        if self.early_stopping is not None and self.evaluate_every is None:
            raise ValueError("early_stopping needs evaluate_every: without evaluations there is nothing to judge by")
        return self


class EvaluationSettings(Strict):
    """How the tuned model is compared with the base: same prompts, same seeds."""

    prompts: Prompts = Field(description="A text file of held-out prompts, one a line, or a list of them.")
    scorers: list[str] = Field(min_length=1, description="Names or dotted paths; best not those that were rewarded.")
    n: int = Field(2, ge=1, description="Pairs of pictures of each prompt.")
    seed: int = Field(0, ge=0, description="The first seed; each pair shares one.")
    num_inference_steps: int = Field(50, ge=1, description="Denoising steps of a sample.")
    guidance_scale: float | None = Field(None, ge=0, description="Classifier-free guidance; null for the model's own.")
    eta: float = Field(0.0, ge=0, description="Noise put back at each step; 0 is deterministic.")


class Recipe(Strict):
    """One run: a model, an algorithm, what it learns from, and how it is judged."""

    model: ModelSettings = Field(description="Which model is tuned.")
    algorithm: AlgorithmSettings = Field(description="Which method, with its own options.")
    data: DataSettings | None = Field(None, description="Preference data, for offline methods.")
    rollout: RolloutSettings | None = Field(None, description="Own samples and rewards, for online methods.")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="The training loop.")
    evaluation: EvaluationSettings | None = Field(None, description="Comparison with the base; null for none.")
    output: str = Field(min_length=1, description="The run's folder.")

    @model_validator(mode="after")
    def _one_source(self) -> Recipe:
        if (self.data is None) == (self.rollout is None):
            raise ValueError("give either 'data' (offline methods) or 'rollout' (online methods), and not both")
        return self


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: str | Path, overrides: Sequence[str] = (), schema: type[Settings] = Recipe) -> Settings:  # type: ignore[assignment]
    """The checked settings of a YAML file with overrides `a.b=c` on top. Raises ConfigError, one line long."""
    text = _read(Path(path))
    lines = _lines(text, path)
    tree = yaml.safe_load(text)
    if tree is None:
        raise ConfigError(f"{path} is empty; it needs the sections {_listed(schema.model_fields)}")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}, not sections; write `key: value` lines")
    origin = {key: f"{path} line {line}" for key, line in lines.items()}
    for override in overrides:
        key = _override(tree, override, schema)
        origin[key] = f"override '{override}'"
    return _checked(tree, schema, "", origin, str(path))


def section(
    options: Mapping[str, Any], schema: type[Settings], where: str, file: str | Path = "the recipe"
) -> Settings:
    """Options of one section, such as an algorithm's, checked against their own schema with the same errors."""
    return _checked(dict(options), schema, where, {}, str(file))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        guess = difflib.get_close_matches(path.name, near, 1)
        mend = f"did you mean {path.parent / guess[0]}?" if guess else "check the path"
        raise ConfigError(f"{path} does not exist; {mend}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; name the YAML file in it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; recipes are YAML files") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _lines(text: str, path: str | Path) -> dict[str, int]:
    """The line of each dotted key. Raises ConfigError for text that is not YAML and for a key given twice."""
    lines: dict[str, int] = {}
    seen: set[int] = set()

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            return
        seen.add(id(node))
        for key, value in node.value:
            dotted, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if dotted in lines and key.value != "<<":
                raise ConfigError(f"{path} line {line}: '{dotted}' is given twice (first on line {lines[dotted]})")
            lines[dotted] = line
            walk(value, f"{dotted}.")

    try:
        walk(yaml.compose(text, Loader=yaml.SafeLoader), "")
        yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path} line {line}: not valid YAML ({_one_line(error.problem)})") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not valid YAML ({_one_line(error)})") from None
    return lines


def _override(tree: dict[str, Any], override: str, schema: type[BaseModel]) -> str:
    """Sets `a.b=c` in the tree and returns `a.b`; the value is read as YAML."""
    dotted, equals, text = override.partition("=")
    dotted = dotted.strip().removeprefix("--")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w:-]+)*", dotted):
        raise ConfigError(f"override '{override}': write it as section.key=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"override '{override}': the value is not valid YAML; quote it") from None
    *sections, last = _split(dotted, schema)
    place = tree
    for depth, name in enumerate(sections):
        if place.get(name) is None:
            place[name] = {}
        if not isinstance(place[name], dict):
            at = ".".join(sections[: depth + 1])
            raise ConfigError(f"override '{override}': '{at}' is {place[name]!r} and has no keys of its own")
        place = place[name]
    place[last] = value
    return dotted


def _split(dotted: str, schema: type[BaseModel]) -> list[str]:
    """Keys of a dotted key; below a plain mapping such as `rollout.scorers` the rest is one key, dots and all."""
    keys, model = dotted.split("."), schema
    for depth, key in enumerate(keys):
        field = model.model_fields.get(key)
        if field is None:
            break
        if get_origin(field.annotation) is dict:
            return [*keys[: depth + 1], ".".join(keys[depth + 1 :])] if keys[depth + 1 :] else keys
        below = _model_of(field.annotation)
        if below is None:
            break
        model = below
    return keys


# --- errors -----------------------------------------------------------------------------------------------------------


def _checked(
    tree: dict[str, Any], schema: type[Settings], where: str, origin: Mapping[str, str], file: str
) -> Settings:
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        problems = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    message = _explain(problems[0], tree, schema, where, origin, file)
    others = len(problems) - 1
    rest = f" (and {others} more problem{'s' * (others > 1)})" if others else ""
    raise ConfigError(_one_line(message) + rest) from None


def _explain(
    problem: ErrorDetails, tree: dict[str, Any], schema: type[BaseModel], where: str, origin: Mapping[str, str], file: str
) -> str:
    """One problem as a sentence: where it stands, the dotted key, what is wrong and the mend."""
    loc = _loc_in(tree, problem)
    key = ".".join(map(str, loc))
    source = next((origin[at] for at in _prefixes(loc) if at in origin), file)
    dotted = f"{where}.{key}".strip(".") if where else key
    if problem["type"] == "extra_forbidden":
        return f"{source}: unknown key '{dotted}'; {_did_you_mean(loc, schema, where)}"
    if problem["type"] == "missing":
        field = _parent(schema, loc).model_fields.get(str(loc[-1]))
        about = f" ({field.description.rstrip('.')})" if field and field.description else ""
        return f"{source}: '{dotted}' is missing; add it{about}"
    text = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if problem["type"] == "value_error":
        return f"{source}: {repr(dotted) + ' ' if dotted else ''}{text}"
    return f"{source}: '{dotted}' {text}, not {str(problem['input'])[:60]!r}"


def _loc_in(tree: Any, problem: ErrorDetails) -> list[str | int]:
    """The error's place without pydantic's own tags (the arms of a union), which are no keys of the tree."""
    loc: list[str | int] = []
    for at, item in enumerate(problem["loc"]):
        last = at == len(problem["loc"]) - 1
        if (isinstance(tree, dict) and item in tree) or (isinstance(tree, list) and isinstance(item, int)):
            loc.append(item)
            tree = tree[item]  # type: ignore[index]
        elif last and problem["type"] == "missing":
            loc.append(item)
    return loc


def _did_you_mean(loc: Sequence[str | int], schema: type[BaseModel], where: str) -> str:
    """The nearest known key: among its siblings first, then a key of the same name elsewhere in the schema."""
    siblings = list(_parent(schema, loc).model_fields)
    prefix = ".".join([where, *map(str, loc[:-1])]).strip(".")
    near = difflib.get_close_matches(str(loc[-1]), siblings, 1)
    if near:
        return f"did you mean '{prefix + '.' if prefix else ''}{near[0]}'?"
    elsewhere = {dotted.rpartition(".")[2]: dotted for dotted in _dotted_keys(schema)}
    near = difflib.get_close_matches(str(loc[-1]), elsewhere, 1, 0.8)
    if near:
        return f"did you mean '{where + '.' if where else ''}{elsewhere[near[0]]}'?"
    return f"known here: {_listed(siblings)}"


def _parent(schema: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel]:
    """The model that the last key of `loc` belongs to."""
    for key in loc[:-1]:
        field = schema.model_fields.get(str(key))
        schema = (_model_of(field.annotation) if field else None) or schema
    return schema


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The settings model in an annotation such as `X` or `X | None`."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _dotted_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        yield prefix + name
        if (below := _model_of(field.annotation)) is not None:
            yield from _dotted_keys(below, f"{prefix}{name}.")


def _prefixes(loc: Sequence[str | int]) -> list[str]:
    """`a.b.c`, `a.b`, `a`: the nearest known place comes first."""
    return [".".join(map(str, loc[:end])) for end in range(len(loc), 0, -1)]


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "no keys"


# --- writing and comparing --------------------------------------------------------------------------------------------


def dump(config: BaseModel, path: str | Path) -> None:
    """Writes resolved settings as YAML, whole or not at all; `load` gives them back equal."""
    path = Path(path)
    aside = path.with_name(path.name + ".partial")
    aside.write_text(to_yaml(config), encoding="utf-8")
    aside.replace(path)


def to_yaml(config: BaseModel) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def difference(a: BaseModel | Mapping[str, Any], b: BaseModel | Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, as `training.seed: 0 -> 1`; empty if the settings are the same."""
    before, after = dict(_leaves(a)), dict(_leaves(b))
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}" for key in keys if _shown(before, key) != _shown(after, key)
    ]


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, BaseModel):
        tree = tree.model_dump(mode="json")
    if isinstance(tree, Mapping) and (tree or not prefix):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "(absent)"
