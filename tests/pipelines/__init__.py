"""Tiny offline builds of diffusers' pipelines, by class: real code with random weights, made from a seed.

Every file of this package that assigns `BUILDS = {"ClassName (variant)": builder, ...}` takes part; a builder returns
the pipeline and the arguments of its call that keep it tiny. The keys are read from the source, so that one build
costs the import of one file.
"""

from __future__ import annotations

import ast
import importlib
import warnings
from functools import cache
from pathlib import Path
from typing import Any


@cache
def places() -> dict[str, str]:
    """The name of every build -> the module of this package that has it. Raises ValueError for a name given twice."""
    found: dict[str, str] = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        for name in build_names(ast.parse(file.read_text())):
            if name in found:
                raise ValueError(f"{file.name}: {name!r} is built in {found[name]}.py already")
            found[name] = file.stem
    return found


def build_names(tree: ast.Module) -> list[str]:
    """The literal keys of the module's `BUILDS`."""
    names: list[str] = []
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "BUILDS" for target in targets):
            value = getattr(node, "value", None)
            assert isinstance(value, ast.Dict), "BUILDS must be a dict with literal keys"
            names += [ast.literal_eval(key) for key in value.keys if key is not None]
    return names


def build(name: str) -> tuple[Any, dict[str, Any]]:
    """A fresh pipeline of that name and the arguments of its call.

    Without the warnings of libraries about each other, and without gradients: a weight-normed layer that was made with
    them cannot be copied.
    """
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"{__name__}.{places()[name]}").BUILDS[name]()
