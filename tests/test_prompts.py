"""Prompt files as benchmarks publish them, in miniature, and files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from palate.prompts import Prompt, PromptError, distinct, read

PARTI = (
    "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tBiology-inspired\n"
    'a wall with "Fly an airplane" written on it\tOutdoor Scenes\tComplex\t\n"I think" on a sign\tArtifacts\tBasic\t\n'
)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_plain_text(tmp_path):
    got = read(write(tmp_path / "p.txt", "\ufeffa cat\n\n  a dog \na cat\n"))
    assert got == [Prompt("a cat"), Prompt("a dog"), Prompt("a cat")]
    assert distinct(got) == [Prompt("a cat"), Prompt("a dog")]


def test_jsonl_keeps_what_else_it_says(tmp_path):
    lines = [{"prompt": "a cat", "category": "animals", "id": 7, "source": "x"}, {"text": "a\u2028dog"}]
    got = read(write(tmp_path / "p.jsonl", "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)))
    assert got == [Prompt("a cat", "animals", "7"), Prompt("a\u2028dog")]
    assert got[0].facts["source"] == "x"


def test_partiprompts(tmp_path):
    got = read(write(tmp_path / "PartiPrompts.tsv", PARTI))
    assert [p.text for p in got] == ["bond", 'a wall with "Fly an airplane" written on it', '"I think" on a sign']
    assert (got[1].category, got[1].facts["Challenge"]) == ("Outdoor Scenes", "Complex")


def test_drawbench(tmp_path):
    text = 'Prompts,Category\nA red colored car.,Colors\n"One cat, two dogs, and ""three"" birds.",Counting\n'
    assert read(write(tmp_path / "drawbench.csv", text)) == [
        Prompt("A red colored car.", "Colors"),
        Prompt('One cat, two dogs, and "three" birds.', "Counting"),
    ]


def test_geneval(tmp_path):
    line = {"tag": "counting", "include": [{"class": "bench", "count": 2}], "prompt": "a photo of two benchs"}
    got = read(write(tmp_path / "evaluation_metadata.jsonl", json.dumps(line) + "\n"))
    assert got == [Prompt("a photo of two benchs", "counting")]
    assert got[0].facts == line


def test_hpsv2_a_folder_of_lists_and_one_list(tmp_path):
    write(tmp_path / "anime.json", json.dumps(["a girl", "a boy"]))
    write(tmp_path / "photo.json", json.dumps(["a tree"]))
    assert read(tmp_path) == [Prompt("a girl", "anime"), Prompt("a boy", "anime"), Prompt("a tree", "photo")]
    assert read(tmp_path / "photo.json") == [Prompt("a tree")]


def test_dpg_bench_a_folder_of_texts(tmp_path):
    for name, text in (("10", "ten\n"), ("9", "nine, on\ntwo lines"), ("COCOval2014_000000000014", "coco")):
        write(tmp_path / f"{name}.txt", text)
    got = [("nine, on two lines", "9"), ("ten", "10"), ("coco", "COCOval2014_000000000014")]
    assert [(p.text, p.id) for p in read(tmp_path)] == got


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.txt", "\n \n", "holds no prompts"),
        ("p.txt", b"one\ncaf\xe9\n", "p.txt line 2: not UTF-8"),
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', "p.jsonl line 3 is not JSON"),
        ("p.jsonl", '{"prompts": ["a"]}\n', "line 1: no prompt"),
        ("p.jsonl", "[1]\n", "line 1 should be a text or an object"),
        ("p.json", '{"prompt": "a"}', "should hold a list"),
        ("p.json", '["a", 3]', "entry 1 should be"),
        ("p.csv", "Name,Category\na,b\n", "line 1: no column is called prompt"),
        ("p.csv", "Prompt,Category\na red, blue cat,b\n", "line 2: 3 cells under 2 columns; put a prompt"),
        ("p.csv", 'Prompt,Category\na,b\n"open,b\n', "p.csv line 3"),
        ("p.tsv", "Prompt\tCategory\n\tb\n", "line 2: no prompt"),
    ],
)
def test_errors_name_file_line_and_mend(tmp_path, name, content, says):
    with pytest.raises(PromptError, match=says) as raised:
        read(write(tmp_path / name, content))
    assert name in str(raised.value)


def test_files_that_are_not_there_and_folders_of_something_else(tmp_path):
    with pytest.raises(PromptError, match="does not exist"):
        read(tmp_path / "absent.txt")
    with pytest.raises(PromptError, match=r"neither \.json"):
        read(tmp_path)
    write(tmp_path / "1.txt", "")
    with pytest.raises(PromptError, match=r"1\.txt is empty"):
        read(tmp_path)
