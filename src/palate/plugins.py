"""The file name is the registry: dropping `foo.py` into an open folder is the whole registration of `foo`.

available("algorithms")                    # ['d3po', 'ddpo', ...], without importing any of them
find("algorithms", "d3po")                 # the module palate.algorithms.d3po
find("scorers", "my_lab.scorers:sharp")    # anyone's module, or an attribute of it, by dotted path
world("world:shapes-flow")                 # the module palate.worlds.shapes.flow: one world, another model
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib.util import find_spec
from typing import Any

_ONE = {"algorithms": "algorithm", "scorers": "scorer", "datasets": "data format", "worlds": "world"}


class PluginError(ValueError):
    """A plugin does not exist or cannot be imported; the message is one line and says what to do."""


def available(package: str) -> list[str]:
    """Names of the modules in `palate.<package>`, sorted, private ones left out. Imports none of them."""
    spec = find_spec(f"palate.{package}")
    folders = spec.submodule_search_locations if spec else None
    if folders is None:
        raise PluginError(f"palate has no folder of plugins '{package}'")
    return sorted(module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_"))


def find(package: str, name: str) -> Any:
    """The module `palate.<package>.<name>`, or of a dotted path `my.module`, or its attribute `my.module:attr`."""
    path, colon, attribute = name.partition(":")
    check(package, name)
    if "." not in path and not colon:
        path = f"palate.{package}.{name}"
    module = _imported(path, f"{package} '{name}'")
    if not colon:
        return module
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [other for other in vars(module) if not other.startswith("_")]
        raise PluginError(f"module {path} has no '{attribute}'{_nearest(attribute, public)}") from None


def world(name: str) -> Any:
    """The module of `world:<world>`, or of `world:<world>-<model>` where a world ships further models."""
    base, dash, model = name.removeprefix("world:").partition("-")
    found = find("worlds", base)
    return find("worlds", f"{found.__name__}.{model}") if dash else found


def check(package: str, name: str) -> None:
    """Raises PluginError, without importing anything, for a name that is neither in the folder nor a dotted path."""
    path, colon, _ = name.partition(":")
    if "." in path or colon:
        return
    names = available(package)
    if name not in names:
        known = f"known: {', '.join([*names, *_further(package)])}" if names else "none is installed"
        one = _ONE.get(package, package)
        raise PluginError(f"unknown {one} '{name}'{_nearest(name, names)}; {known}; or give a dotted path")


def _further(package: str) -> list[str]:
    """What else a name may be, where not only files of the folder are meant."""
    return [*(f"world:{world}" for world in available("worlds")), "implicit:RUN"] if package == "scorers" else []


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name.replace("-", "_").lower(), names, 1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _imported(path: str, what: str) -> Any:
    if not all(part.isidentifier() for part in path.split(".")):
        raise PluginError(f"{what}: write the dotted path of a module, my.module or my.module:attribute")
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if path == missing or path.startswith(f"{missing}."):
            module, _, name = path.rpartition(".")
            mend = f"is it installed, or on PYTHONPATH? What stands in a module is written {module}:{name}"
            raise PluginError(f"{what}: there is no module {missing}; {mend}") from None
        raise PluginError(f"{what} needs the package {missing}, which is not installed") from error
