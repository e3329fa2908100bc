"""What is asked for is judged before anything heavy is imported, and nothing is left behind where it was refused."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from palate import durable
from palate.doors import asked


@pytest.fixture
def pairs(tmp_path) -> Path:
    folder = tmp_path / "pairs"
    for side in ("chosen", "rejected"):
        (folder / side).mkdir(parents=True)
        (folder / side / "1.png").write_bytes(b"not looked at")
    (folder / "chosen" / "1.txt").write_text("a cat")
    return folder


def recipe(tmp_path: Path, pairs: Path, **sections) -> Path:
    content = {
        "model": {"name": "world:shapes"},
        "algorithm": {"name": "diffusion_dpo"},
        "data": {"path": str(pairs)},
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content | sections))
    return path


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"algorithm": {"name": "difusion_dpo"}}, "unknown algorithm 'difusion_dpo'; did you mean 'diffusion_dpo'"),
        ({"model": {"nam": "x"}}, "unknown key 'model.nam'"),
        ({"model": {"name": "./nope"}}, "nope: no such folder"),
        ({"model": {"name": "world:shaps"}}, "unknown world 'shaps'; did you mean 'shapes'?"),
        ({"data": {"path": "nowhere"}}, "data.path is nowhere, and there is no such folder; give the path"),
        ({"evaluation": {"prompts": "no.txt", "scorers": {"jpeg_size": 1}}}, "no.txt does not exist"),
        ({"evaluation": {"prompts": ["a"], "scorers": {"pikscore": 1}}}, "unknown scorer 'pikscore'; did you mean"),
    ],
)
def test_a_slip_is_told_without_torch(tmp_path, pairs, sections, said):
    path = recipe(tmp_path, pairs, **sections)
    script = (
        "import sys\nfrom palate.doors import asked\n"
        "try: asked.training(sys.argv[1])\n"
        "except (ValueError, OSError) as error: print(error)\n"
        "print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    if "data" in sections or "evaluation" in sections:  # the dear way once or twice is enough
        with pytest.raises((ValueError, OSError), match=said):
            asked.training(path)
        return
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert said in done.stdout and done.stdout.endswith("set()\n")


@pytest.mark.parametrize("verb", ["doctor", "train", "rounds"])
def test_a_slip_is_told_in_a_second_by_every_verb_that_takes_a_recipe(tmp_path, pairs, verb):
    path = recipe(tmp_path, pairs, training={"max_stps": 3})
    script = (
        "import sys\nfrom palate import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as left: assert left.code == 1\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, verb, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "unknown key 'training.max_stps'; did you mean 'training.max_steps'" in done.stderr


def test_an_output_that_is_no_runs_folder_is_refused(tmp_path, pairs):
    with pytest.raises(ValueError, match=r"output is .*pairs, which is no run's folder and not empty \(chosen, rejec"):
        asked.training(recipe(tmp_path, pairs, output=str(pairs)))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="which is a file; name a folder"):
        asked.training(recipe(tmp_path, pairs, output=str(tmp_path / "file")))
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("run.lock", "nohup.out", ".DS_Store"):
        (begun / name).write_text("")
    asked.training(recipe(tmp_path, pairs, output=str(begun)))
    with durable.locked(begun), pytest.raises(OSError, match="is in use by another run"):
        asked.training(recipe(tmp_path, pairs, output=str(begun)))


def test_options_of_another_algorithm_are_said_to_be_its(tmp_path, pairs):
    path = recipe(tmp_path, pairs, algorithm={"name": "diffusion_dpo", "beta_dpo": 10})
    with pytest.raises(ValueError, match=r"'algorithm.beta_dpo' belongs to diffusion_dpo; flow_dpo has beta: rename"):
        asked.training(path, ["algorithm.name=flow_dpo"])


def test_scorers_that_are_no_files_are_known_too():
    asked.scorers(
        ["world:shapes/alignment", "implicit:runs/x", "jpeg_size", "clip_score:a/b,dtype:bfloat16", "my.lab:x"]
    )
    with pytest.raises(ValueError, match=r"unknown scorer 'x'; known: .*, world:shapes, implicit:RUN; or give"):
        asked.scorers(["x"])


def test_pictures_and_prompts_of_samples_are_looked_for_first(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    asked.sampling(["world:shapes"], prompts)
    with pytest.raises(ValueError, match=r"--image .*none.png: there is no such file or folder"):
        asked.sampling(["world:shapes"], prompts, image=tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"--out .*prompts.txt is a file, and a folder is wanted"):
        asked.sampling(["world:shapes"], prompts, out=prompts)
    with pytest.raises(OSError, match="nope: no such folder"):
        asked.sampling(["./nope"], prompts)


def test_each_comparison_has_a_folder_of_its_own():
    names = [["world:shapes", "runs/mine"], ["world:shapes", "runs/other"], ["a/b", "/tmp/x/", "world:shapes"]]
    folders = [asked.comparison_folder(models) for models in names]
    assert [folder.as_posix() for folder in folders] == [
        "runs/compare/world-shapes-vs-mine",
        "runs/compare/world-shapes-vs-other",
        "runs/compare/a-b-vs-tmp-x-vs-world-shapes",
    ]


def test_a_file_where_a_folder_is_wanted_is_said_to_be_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("")
    with (
        pytest.raises(OSError, match=r"mine.yaml is a file, and a folder is wanted"),
        durable.locked(tmp_path / "mine.yaml"),
    ):
        pass


@contextlib.contextmanager
def in_folder(folder: Path):
    with durable.unmade(folder, unless_more_than=(durable.LOCK,)), durable.locked(folder):
        yield


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    made, own = tmp_path / "runs" / "x", tmp_path / "own"
    own.mkdir()
    for folder, kept in ((made, False), (own, True)):
        with pytest.raises(ValueError, match="refused"), in_folder(folder):
            raise ValueError("refused")
        assert folder.exists() == kept
    assert not made.parent.exists()
    with pytest.raises(ValueError, match="refused"), in_folder(made):
        (made / "work").write_text("")
        raise ValueError("refused")
    assert made.exists()
