"""The doors: quick to open, one line for what the user can mend, the right exit code."""

import json
import subprocess
import sys
import time
import types

import pytest

from palate import cli
from palate.doors import asked

VERBS = ("demo", "sample", "train", "compare", "report", "export", "doctor")


def call(*arguments):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    return left.value.code or 0


@pytest.fixture
def run_module(monkeypatch):
    """A stand-in for the modules behind the verbs that notes how they were called."""
    calls = []
    module = types.ModuleType("palate.doors.run")
    for verb in ("train", "sample", "compare", "export"):
        setattr(module, verb, lambda *a, verb=verb, **k: calls.append((verb, a, k)))
    module.calls = calls
    for judged in ("training", "sampling", "scorers", "run"):
        monkeypatch.setattr(asked, judged, lambda *_, **__: None)
    for name in ("run", "drawing", "exporting", "comparing"):
        monkeypatch.setitem(sys.modules, f"palate.doors.{name}", module)
    return module


def test_help_is_quick_and_loads_no_torch():
    script = (
        "import sys; sys.argv = ['palate', '--help']\n"
        "from palate.cli import main\n"
        "try: main()\n"
        "except SystemExit as left: assert not left.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        best = min(best, time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)
    assert best < 0.5


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "palate", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("palate ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert call(verb, "--help") == 0
    assert f"Usage: palate {verb}" in capsys.readouterr().out
    assert call("--help") == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]  # no summary is cut short


@pytest.mark.parametrize("arguments", [["traim"], ["train"], ["sample", "m", "p", "-k", "0"], ["report", "a", "--x"]])
def test_wrong_usage_is_exit_2(arguments):
    assert call(*arguments) == 2


def test_train_hands_over_recipe_and_overrides(run_module):
    assert call("train", "r.yaml", "training.max_steps=5", "model.lora=null") == 0
    ((verb, (recipe, overrides), _),) = run_module.calls
    assert (verb, str(recipe), overrides) == ("train", "r.yaml", ["training.max_steps=5", "model.lora=null"])


def test_sample_and_compare_hand_over_their_options(run_module):
    assert call("sample", "world:shapes", "p.txt", "-k", "2", "--steps", "10", "--guidance", "3", "--eta", "1") == 0
    assert call("compare", "a", "b", "--prompts", "p.txt", "--scorer", "x", "--scorer", "y", "-n", "3") == 0
    sampled, compared = (options for _, _, options in run_module.calls)
    assert sampled["k"] == 2
    assert (sampled["num_inference_steps"], sampled["guidance_scale"], sampled["eta"]) == (10, 3.0, 1.0)
    assert (compared["scorers"], compared["n"], compared["num_inference_steps"]) == (["x", "y"], 3, None)


def test_sample_and_export_hand_over_pictures_and_places(run_module):
    assert call("sample", "m", "p.txt", "--image", "a.png", "--strength", "0.3") == 0
    assert call("export", "runs/x", "--merge", "-o", "out") == 0
    (_, _, sampled), (_, (run, out), exported) = run_module.calls
    assert (str(sampled["image"]), sampled["strength"]) == ("a.png", 0.3)
    assert (str(run), str(out), exported) == ("runs/x", "out", {"merge": True})


def test_an_expected_error_is_one_line(run_module, capsys):
    def fail(*_):
        raise ValueError("the first line\nand more")

    run_module.train = fail
    assert call("train", "r.yaml") == 1
    assert capsys.readouterr().err == "error: the first line and more\n"
    assert call("train", "r.yaml", "--debug") == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("error: the first line and more\n")


def test_a_missing_file_is_named(run_module, capsys, tmp_path):
    run_module.train = lambda recipe, _: recipe.read_text()
    assert call("train", str(tmp_path / "none.yaml")) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.yaml'}: No such file or directory\n"


@pytest.mark.parametrize("fault", [AssertionError("ours"), RuntimeError("ours"), TypeError("ours")])
def test_a_fault_within_is_not_hidden(run_module, fault):
    def fail(*_):
        raise fault

    run_module.train = fail
    with pytest.raises(type(fault), match="ours"):
        cli.main(["train", "r.yaml"])


def test_refusals_of_any_kind_and_lack_of_memory_are_one_line(run_module, capsys):
    class RefusalError(RuntimeError):
        __module__ = "palate.training.trainer"

    class OutOfMemoryError(RuntimeError):
        pass

    def fail(*_):
        raise error

    run_module.train = fail
    error: Exception = RefusalError("nothing is trainable")
    assert call("train", "r.yaml") == 1
    assert capsys.readouterr().err == "error: nothing is trainable\n"
    error = OutOfMemoryError("CUDA out of memory. Tried to allocate ...")
    assert call("train", "r.yaml") == 1
    said = capsys.readouterr().err
    assert "lower training.micro_batch_size" in said and "evaluation.batch_size" in said and "--batch-size" in said


def test_an_interruption_says_how_to_go_on(run_module, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    run_module.train = run_module.sample = interrupt
    assert call("train", "r.yaml") == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert call("sample", "m", "p.txt") == 130
    assert "to draw what is missing" in capsys.readouterr().err
    run_module.compare = interrupt
    assert call("compare", "a", "b", "--prompts", "p.txt", "--scorer", "x") == 130
    assert "to draw and judge what is missing" in capsys.readouterr().err


def test_an_interrupted_demo_says_that_it_goes_on(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    module = types.ModuleType("palate.doors.demo")
    module.METHOD = "diffusion_dpo"
    module.run = interrupt
    monkeypatch.setitem(sys.modules, "palate.doors.demo", module)
    assert call("demo") == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def test_report_writes_a_page(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.7}) + "\n")
    assert call("report", str(tmp_path)) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert call("report", str(tmp_path / "none")) == 1
    assert "none is no run's folder: it has no config.yaml" in capsys.readouterr().err
    assert call("export", str(tmp_path)) == 1  # there is a page of it, and no weights
    assert "is no run's folder: it has no config.yaml" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("model: {name: m}\n")
    assert call("export", str(tmp_path)) == 1
    assert "has no adapter/ yet" in capsys.readouterr().err
    assert call("score", "--project", str(tmp_path), "--scorer", "jpeg_size") == 1
    assert "is no project: it has no project.yaml" in capsys.readouterr().err


def test_doctor_tells_what_there_is():
    from palate.doors import doctor

    lines = []
    doctor.main(lines.append)
    table = "\n".join(lines)
    for name in ("palate", "python", "torch", "diffusers", "memory", "matrix product"):
        assert name in table


def test_doctor_knows_the_trap_of_torchvision():
    from palate.doors.doctor import _older, _torchvision_trouble

    assert "uninstall torchvision" in _torchvision_trouble("2.13.0+cpu", "0.28.0")
    assert _torchvision_trouble("2.13.0+cpu", "0.28.0+cpu") == ""
    assert _torchvision_trouble("2.13.0", "0.28.0") == ""
    assert _older("2.9.1+cpu", (2, 10))
    assert not _older("2.13.0", (2, 10))
