"""Strict settings: a YAML file and `a.b=c` overrides become a checked record, or one line says what to mend.

Nothing passes silently: an unknown, doubled or misspelt key, a wrong type and a missing section are each an error that
names the file, the line and the dotted key. Only plain YAML values are read, never objects.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
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

# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: str | Path, overrides: Sequence[str], schema: type[Settings]) -> Settings:
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
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w:/-]+)*", dotted):
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
    first = {tuple(_loc_in(tree, problem)): problem for problem in reversed(problems)}  # of each key, arms of a union
    said = [_explain(problem, tree, schema, where, origin, file) for problem in reversed(first.values())]
    raise ConfigError("; and ".join(map(_one_line, said))) from None


def _explain(
    problem: ErrorDetails,
    tree: dict[str, Any],
    schema: type[BaseModel],
    where: str,
    origin: Mapping[str, str],
    file: str,
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
        return f"{source}: " + (f"'{dotted}'{' ' if text.startswith('should') else ': '}" if dotted else "") + text
    if problem["type"] in ("model_type", "dict_type"):
        text = "should be a section with keys"
    return f"{source}: '{dotted}' {text}, not {_written(problem['input'])}"


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
    return list(_differences(_plain(a), _plain(b), ""))


def _differences(a: Any, b: Any, at: str) -> Iterator[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _differences(a.get(key, _ABSENT), b.get(key, _ABSENT), f"{at}.{key}" if at else str(key))
    elif a != b or type(a) is not type(b):
        yield f"{at}: {_written(a)} -> {_written(b)}"


def _plain(config: BaseModel | Mapping[str, Any]) -> Any:
    return config.model_dump(mode="json") if isinstance(config, BaseModel) else config


def _written(value: Any) -> str:
    """A value as a recipe would hold it, cut to fit a line."""
    if value is _ABSENT:
        return "(absent)"
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    except yaml.YAMLError:  # not from a recipe
        text = repr(value)
    text = _one_line(text.removesuffix("\n...\n"))
    return text if len(text) <= 80 else text[:77] + "..."


_ABSENT = object()
