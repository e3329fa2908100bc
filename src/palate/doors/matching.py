"""Which kinds of media models make and scorers judge, told before either is loaded: what does not fit is one line."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from palate import plugins
from palate.config import ConfigError
from palate.doors import judges, lookup
from palate.doors.asked import IMPLICIT, WORLD
from palate.kinds import Kind
from palate.models import hub
from palate.models.loading import quietly
from palate.models.naming import resolve_model

_FIELDS: dict[str, Kind] = {"images": "pictures", "frames": "videos", "audios": "sounds"}  # of pipelines' outputs


def made_by(model: str) -> Kind | None:
    """What a model makes, by its pipeline's class; None where that does not tell.

    model: as `lookup.load_arm` takes it. Nothing but its index is read.
    """
    name = _class_of(lookup.base_of(Path(model)) or model)
    import diffusers

    with quietly():  # to look at a class is to import it
        kind: Any = getattr(diffusers, name, None)
    for parent in inspect.getmro(kind) if inspect.isclass(kind) else ():
        found = set()
        for output in vars(sys.modules[parent.__module__]).values():
            if inspect.isclass(output) and output.__name__.endswith("Output") and dataclasses.is_dataclass(output):
                found |= {_FIELDS[field.name] for field in dataclasses.fields(output) if field.name in _FIELDS}
        if found:  # a pipeline may pass on what its parent makes
            return found.pop() if len(found) == 1 else None
    return None


def _class_of(model: str) -> str:
    source = resolve_model(model)
    try:
        if (index := Path(source) / "model_index.json").is_file():
            return str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
        from diffusers import DiffusionPipeline

        return str(DiffusionPipeline.load_config(source, local_files_only=not hub.reached(source))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):  # whoever loads the model says what is wrong with it
        return ""


def judged_by(scorer: str) -> tuple[str, ...]:
    """The kinds of media that a scorer says it judges; none if it does not say.

    It is loaded only if it is a server, which is then asked.
    """
    if scorer.startswith(IMPLICIT):
        made = made_by(scorer.removeprefix(IMPLICIT)) if lookup.base_of(Path(scorer.removeprefix(IMPLICIT))) else None
        return (made,) if made else ()
    name, _ = lookup.split_scorer(scorer)
    if name.startswith(WORLD):
        return tuple(getattr(lookup.find_scorer(name), "judges", ()))
    found: Any = plugins.find("scorers", judges.parse(name).plugin)
    if hasattr(found, "load"):
        with contextlib.suppress(NameError):  # an annotation that only a type checker can read
            found = typing.get_type_hints(found.load).get("return")
        if isinstance(getattr(found, "judges", ()), property):
            found = lookup.find_scorer(name)
    return tuple(getattr(found, "judges", ()))


def check(scorers: Iterable[str], kind: str | None, made: str) -> None:
    """Raises ConfigError for the first scorer that judges other media. made: who has made what, for the message."""
    for name in scorers:
        judged = judged_by(name)
        if kind is not None and judged and kind not in judged:
            raise ConfigError(f"{name} judges {' and '.join(judged)}, and {made} {kind}: choose a scorer of {kind}")


def of_all(models: Sequence[str]) -> Kind | None:
    """The one kind that all models make, None where that is not told. Raises ConfigError for models of several."""
    found = {model: made for model in models if (made := made_by(model)) is not None}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{model} makes {kind}" for model, kind in found.items())
        raise ConfigError(f"only media of one kind can be compared: {told}")
    return next(iter(found.values()), None)


def check_models(scorers: Iterable[str], models: Sequence[str]) -> Kind | None:
    """The kind that all models make. Raises ConfigError as `of_all` and `check` do."""
    kind = of_all(models)
    check(scorers, kind, f"{models[0]} makes")
    return kind
