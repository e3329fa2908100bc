"""Scorers by name, with what they are made of and how they run, in one word that fits a recipe and a command line:

    jpeg_size                                      a file of palate.scorers
    pickscore:/models/pickscore                    ... with its weights: a folder, a file or a hub id
    clip_score:openai/clip-vit-base-patch32        ... or whatever the first argument of its `load` is
    pickscore:/models/pickscore,dtype:bfloat16     ... and options, further arguments of its `load`
    http:127.0.0.1:8765,dimension:quality          ... and one dimension of several
    my_lab.judges:sharp,limit:3                    anyone's, by dotted path

Nothing here imports torch: a scorer that needs none can be served without it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError, validate_call

from palate import plugins
from palate.doors import golden
from palate.strict import ConfigError

_OPTION = re.compile(r",(?=[a-z_]+:)")
_DIMENSION = "dimension"


@dataclass(frozen=True)
class Name:
    """A scorer's name, read. where: what stands behind its colon. plugin: a file's name, or a whole dotted path."""

    plugin: str
    where: str
    options: Mapping[str, str]


def parse(name: str) -> Name:
    """Raises ConfigError for an option that is given twice."""
    head, *pairs = _OPTION.split(name)
    options: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition(":")
        if key in options:
            raise ConfigError(f"scorer {name}: the option {key} is given twice")
        options[key] = value
    plugin, _, where = head.partition(":")
    return Name(head, "", options) if "." in plugin else Name(plugin, where, options)


def split(name: str) -> tuple[str, str]:
    """(the scorer, which of its dimensions, "" for all): `x/dimension`, or `x:where,dimension:dimension`."""
    head, *pairs = _OPTION.split(name)
    kept = [pair for pair in pairs if not pair.startswith(_DIMENSION + ":")]
    asked = [pair.partition(":")[2] for pair in pairs if pair not in kept]
    plugin, colon, _ = head.partition(":")
    if not asked and (not colon or "." in plugin or plugin == "world"):  # else a slash belongs to what it is made of
        head, _, dimension = head.partition("/")
        asked = [dimension]
    return ",".join([head, *kept]), asked[0] if asked else ""


def load(name: str, device: Callable[[str], str] = lambda wanted: wanted) -> Any:
    """The scorer of a name without its dimension, and the golden check passed.

    device: what becomes of the option `device`, "auto" where it is not given. Raises ConfigError naming the option, or
    the check that failed; PluginError for a name that is none.
    """
    read = parse(name)
    found: Any = plugins.find("scorers", read.plugin)
    if not hasattr(found, "load"):
        if read.options:
            raise ConfigError(f"scorer {name}: {read.plugin} takes no options")
        scorer = found
    else:
        scorer = _loaded(name, found.load, read, device)
    golden.check(name, scorer, coarse=read.options.get("dtype", "float32") != "float32")
    return scorer


def _loaded(name: str, make: Callable[..., Any], read: Name, device: Callable[[str], str]) -> Any:
    takes = list(inspect.signature(make).parameters)
    given: dict[str, str] = dict(read.options)
    if read.where:
        if not takes:
            raise ConfigError(f"scorer {name}: {read.plugin} takes nothing behind its colon")
        given = {takes[0]: read.where} | given
    if unknown := sorted(set(given) - set(takes)):
        raise ConfigError(f"scorer {name}: there is no option {unknown[0]}; {read.plugin} takes {', '.join(takes)}")
    if "device" in takes:
        given["device"] = device(given.get("device", "auto"))
    if set(given) <= {"device"}:
        return make(**given)
    try:
        return validate_call(make)(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"scorer {name}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
