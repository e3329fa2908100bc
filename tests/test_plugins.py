"""The file name is the registry."""

import json
import subprocess
import sys

import pytest

from palate import plugins


def test_a_folder_is_listed_without_importing_it():
    script = (
        "import sys; from palate import plugins; names = plugins.available('algorithms');"
        "loaded = [m for m in sys.modules if m.startswith('palate.algorithms') or m == 'torch'];"
        "print('diffusion_dpo' in names, names == sorted(names), loaded)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True True []"


def test_a_dropped_file_is_registered(tmp_path, monkeypatch):
    import palate.scorers

    (tmp_path / "brightness.py").write_text("VALUE = 3\n")
    (tmp_path / "_private.py").write_text("")
    monkeypatch.setattr(palate.scorers, "__path__", [*palate.scorers.__path__, str(tmp_path)])
    monkeypatch.setattr(palate.scorers.__spec__, "submodule_search_locations", palate.scorers.__path__)
    assert "brightness" in plugins.available("scorers")
    assert "_private" not in plugins.available("scorers")
    assert plugins.find("scorers", "brightness").VALUE == 3
    monkeypatch.delitem(sys.modules, "palate.scorers.brightness")


def test_a_world_may_ship_further_models():
    from palate.worlds import shapes
    from palate.worlds.shapes import flow

    assert plugins.world("world:shapes") is plugins.world("shapes") is shapes
    assert plugins.world("world:shapes-flow") is flow
    for name, message in (("world:shape", "did you mean 'shapes'"), ("world:shapes-nothing", "there is no module")):
        with pytest.raises(plugins.PluginError, match=message):
            plugins.world(name)


def test_dotted_paths_serve_third_parties():
    assert plugins.find("scorers", "json.decoder") is json.decoder
    assert plugins.find("scorers", "json:loads") is json.loads


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("difusion_dpo", r"unknown algorithm 'difusion_dpo'; did you mean 'diffusion_dpo'\?; known: .*diffusion_dpo"),
        ("Diffusion-DPO", r"did you mean 'diffusion_dpo'\?"),
        ("", "unknown algorithm ''"),
        ("nobody.has_this", "there is no module nobody; is it installed, or on PYTHONPATH"),
        ("json.nothing", "there is no module json.nothing"),
        ("json:lods", r"module json has no 'lods'; did you mean 'loads'\?"),
        ("..x", "write the dotted path of a module"),
        (":x", "write the dotted path of a module"),
    ],
)
def test_unknown_names_say_what_was_meant(name, message):
    with pytest.raises(plugins.PluginError, match=message):
        plugins.find("algorithms", name)


def test_an_unknown_folder():
    with pytest.raises(plugins.PluginError, match="no folder of plugins 'nothing'"):
        plugins.available("nothing")


def test_a_missing_dependency_is_named(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import nobody_has_this\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(plugins.PluginError, match="scorers 'needy:x' needs the package nobody_has_this"):
        plugins.find("scorers", "needy:x")


def test_a_fault_inside_a_plugin_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text("raise TypeError('inside')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TypeError, match="inside"):
        plugins.find("scorers", "faulty:x")
