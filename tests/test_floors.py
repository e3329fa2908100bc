"""The house: imports go down only, plugins do not know their siblings, the trainer knows no method by name.

A new module must be given its floor in `FLOORS`; see the design's section on the house.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parent.parent / "src" / "palate"
FLOORS = [
    (
        "facts; no torch",
        {
            "records",
            "media",
            "webm",
            "reading",
            "tables",
            "duplicates",
            "store",
            "durable",
            "memory",
            "agreement",
            "jackknife",
            "planning",
            "prompts",
            "project",
            "views",
            "config",
            "strict",
            "plugins",
            "privacy",
            "studio",
            "wire",
            "clips",
            "kinds",
        },
    ),
    ("maths", {"losses", "paths", "transitions", "randomness", "metrics"}),
    ("contracts and what plugs in", {"models", "scorers", "remote"}),
    ("using a model without knowing which", {"sampling", "likelihood", "feedback", "guidance", "editing"}),
    (
        "papers, the loop, the judgement",
        {"algorithms", "training", "datasets", "checking", "evaluation", "worlds", "relabel", "implicit_reward"},
    ),
    (
        "doors",
        {
            "cli",
            "doors",
            "__main__",
        },
    ),
]
FLOOR = {name: floor for floor, (_, names) in enumerate(FLOORS) for name in names}
OPEN = {"scorers": 1, "algorithms": 1, "datasets": 1, "worlds": 1}  # folder -> depth of its plugins
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate")
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
TRUST = {"trust_remote_code", "allow_pickle"}
FAMILIES = {"stable_diffusion", "sdxl", "sd3", "flux", "wan", "pixart", "sana", "unet", "transformer", "llama", "qwen"}
MODALITIES = {"image", "images", "picture", "pictures", "video", "music", "audio", "text"}

Edge = tuple[str, str, int]  # importing module, imported module, line


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below `palate`; the package itself is ``."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(name: str) -> Iterator[Edge]:
    """Imports of palate's own modules anywhere in a module's text, functions and type-checking blocks included."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "palate":
                    yield name, alias.name.partition(".")[2], node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            elif (node.module or "").split(".")[0] == "palate":
                base = (node.module or "").split(".")[1:]
            else:
                continue
            for alias in node.names:
                target = ".".join(filter(None, [*base, alias.name]))
                yield name, target if target in MODULES else ".".join(filter(None, base)), node.lineno


EDGES = [edge for name in MODULES for edge in imports(name)]


def top(name: str) -> str:
    return name.split(".")[0]


def where(edge: Edge) -> str:
    return f"{MODULES[edge[0]].relative_to(ROOT.parent)}:{edge[2]} imports palate.{edge[1]}"


def test_every_module_has_a_floor():
    unmapped = sorted({top(name) for name in MODULES if name} - set(FLOOR))
    assert not unmapped, f"give palate.{', palate.'.join(unmapped)} a floor in tests/test_floors.py"


def test_imports_go_down_only():
    up = [
        f"{where(edge)}: floor {FLOOR[top(edge[0])]} must not know floor {FLOOR[top(edge[1])]}"
        for edge in EDGES
        if edge[0] and edge[1] and FLOOR.get(top(edge[1]), 0) > FLOOR.get(top(edge[0]), 9)
    ]
    assert not up, "\n".join(up)
    assert not [where(edge) for edge in EDGES if not edge[0]], "palate/__init__.py imports nothing"


def test_no_floor_goes_round_in_circles():
    below: dict[str, set[str]] = {}
    for source, target, _ in EDGES:
        if source and target and top(source) != top(target):
            below.setdefault(top(source), set()).add(top(target))

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "imports go round: " + " -> ".join([*trail[trail.index(name) :], name])
        for other in sorted(below.get(name, ())):
            walk(other, (*trail, name))

    for name in below:
        walk(name, ())


def test_no_plugin_knows_its_siblings():
    def plugin(name: str) -> tuple[str, ...] | None:
        parts = name.split(".")
        depth = OPEN.get(parts[0], 0)
        return tuple(parts[: depth + 1]) if depth and len(parts) > depth else None

    known = [
        f"{where(edge)}, a sibling plugin; share by a function below, or let the caller pass it"
        for edge in EDGES
        if (mine := plugin(edge[0])) and (other := plugin(edge[1])) and mine[0] == other[0] and mine != other
    ]
    assert not known, "\n".join(known)


def test_the_lowest_floor_needs_no_torch():
    names = [name for name in MODULES if FLOOR.get(top(name)) == 0]
    lines = [f"import palate.{name}" for name in names]
    lines.append(f"heavy = set({HEAVY!r}) & set(sys.modules); assert not heavy, heavy")
    script = "import sys\n" + "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_trainer_knows_no_method_by_name():
    path = ROOT / "training" / "trainer.py"
    if not path.exists():
        pytest.skip("there is no trainer yet")
    algorithms = {Path(name.replace(".", "/")).name for name in MODULES if name.startswith("algorithms.")}
    words = set(re.findall(r"[a-z0-9_]+", path.read_text(encoding="utf-8").lower()))
    named = words & (algorithms | FAMILIES | MODALITIES)
    assert not named, f"trainer.py is blind to algorithms, families and modalities, yet it says: {sorted(named)}"


def named(node: ast.expr | None, names: set[str]) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and node.value in names


def refused(node: ast.expr) -> bool:
    """A literal False: saying no aloud is welcome."""
    return isinstance(node, ast.Constant) and node.value is False


def risks(path: Path) -> Iterator[str]:
    """Ways to run code that came with data: unpickling, full YAML, trusted remote code."""
    for node in ast.walk(tree(path)):
        at = f"{path.relative_to(ROOT.parent)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (f"{at} imports {a.name}" for a in node.names if a.name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in UNPICKLERS:
                yield f"{at} imports {node.module}"
            if node.module in ("torch", "yaml") and {"load", "full_load", "unsafe_load"} & {a.name for a in node.names}:
                yield f"{at} imports load from {node.module}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in {("torch", "load"), ("yaml", "load"), ("yaml", "load_all")}:
                yield f"{at} uses {node.value.id}.{node.attr}"
            elif node.value.id == "yaml" and ("unsafe" in node.attr or "full" in node.attr.lower()):
                yield f"{at} uses yaml.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg in TRUST and not refused(node.value):
            yield f"{at} passes {node.arg}"
        elif isinstance(node, ast.Dict):
            items = zip(node.keys, node.values, strict=True)
            yield from (f"{at} names {k.value}" for k, v in items if named(k, TRUST) and not refused(v))
        elif isinstance(node, ast.Subscript) and named(node.slice, TRUST):
            yield f"{at} sets {ast.unparse(node.slice)}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            yield f"{at} calls {node.func.id}"


def test_data_never_runs_as_code():
    found = [risk for path in MODULES.values() for risk in risks(path)]
    assert not found, "\n".join(found)


# --- the test's own teeth ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import torch; torch.load('x')",
        "from torch import load",
        "import yaml; yaml.load('x')",
        "import yaml; yaml.unsafe_load('x')",
        "f(trust_remote_code=True)",
        "f(**{'trust_remote_code': True})",
        "o = {}; o['trust_remote_code'] = True",
        "f(trust_remote_code=anything)",
        "eval('1')",
    ],
)
def test_a_risk_is_seen(text, tmp_path, monkeypatch):
    path = tmp_path / "palate" / "bad.py"
    path.parent.mkdir()
    path.write_text(text)
    monkeypatch.setitem(risks.__globals__, "ROOT", tmp_path / "palate")
    assert list(risks(path))


def test_saying_no_is_no_risk(tmp_path, monkeypatch):
    path = tmp_path / "palate" / "good.py"
    path.parent.mkdir()
    path.write_text("f(trust_remote_code=False, **{'trust_remote_code': False}); np.load('x', allow_pickle=False)")
    monkeypatch.setitem(risks.__globals__, "ROOT", tmp_path / "palate")
    assert not list(risks(path))


def test_imports_are_seen_wherever_they_stand(tmp_path, monkeypatch):
    path = tmp_path / "algorithms" / "new.py"
    path.parent.mkdir()
    path.write_text(
        "import palate.config\nfrom palate import losses\nfrom palate.algorithms import other\nfrom . import third\n"
        "from ..training.trainer import Trainer\ndef late():\n    from palate.cli import main\n"
    )
    names = {"algorithms.new": path, "losses": path, "algorithms.other": path, "algorithms.third": path}
    monkeypatch.setitem(imports.__globals__, "MODULES", names)
    assert [edge[1] for edge in imports("algorithms.new")] == [
        "config",
        "losses",
        "algorithms.other",
        "algorithms.third",
        "training.trainer",
        "cli",
    ]
