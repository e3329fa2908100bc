"""What `palate dataset check` finds, in data whose faults were put there by hand."""

from __future__ import annotations

import json
import math
import os

import pytest

from palate import checking, datasets
from palate.records import Aspect, Medium, Preference
from tests.datasets.make import picture, png, save

NAN = math.nan


def row(i: int, p: float = 1.0, **changes) -> Preference:
    given = {"media": (png(2 * i), png(2 * i + 1)), "prefer": [[NAN, p], [1 - p, NAN]], "sources": ("sdxl", "sd15")}
    return Preference(f"prompt {i}", **{**given, **changes})


def check(folder, rows, **options):
    datasets.write(folder, rows, "parquet")
    return checking.check(datasets.open(folder), **options)


def test_counts_and_balance(tmp_path):
    labels = [1.0] * 6 + [0.0] * 2 + [0.5] * 2 + [0.75] * 2
    rows = [row(i, p) for i, p in enumerate(labels)]
    rows += [
        row(12, media=(png(24), png(25), None), prefer=[[NAN] * 3] * 3, mask=(True, True, False), sources=[""] * 3)
    ]
    rows += [row(13, NAN, aspects=[Aspect("TA", [[NAN, 0.5], [0.5, NAN]])])]
    found = check(tmp_path, rows)
    assert found.good and (found.rows, found.prompts, found.media) == (14, 14, 28)
    assert (found.pairs, found.ties, found.soft, found.silent) == (12, 2, 2, 1)
    assert found.candidates == {2: 14} and found.sizes == {"32x24": 28}
    assert found.balance is not None and found.balance.n == 12 and found.balance.share == pytest.approx(8.5 / 12)
    assert found.balance.ci95[0] < 8.5 / 12 < found.balance.ci95[1]
    assert found.by_source["sdxl"].share == pytest.approx(8.5 / 12) == 1 - found.by_source["sd15"].share
    assert found.aspects == {"TA": {"pairs": 1, "ties": 1}}
    assert found.copies == found.alike == found.same_in_row.total == 0
    assert json.loads(json.dumps(found.json()))["balance"]["n"] == 12
    assert str(found).endswith("\ngood")


def test_repeated_pictures(tmp_path):
    smaller = Medium("image/jpeg", picture(2, "JPEG", quality=95))
    rows = [
        row(0, media=(png(0), png(1))),
        row(1, media=(png(0), png(3))),  # the first of the row before, under another prompt
        row(2, media=(png(2), smaller)),  # the same but for its compression
        row(3, media=(png(4), png(4))),
    ]
    found = check(tmp_path, rows)
    assert (found.copies, found.elsewhere, found.alike) == (2, 1, 2)
    assert [flaw.where for flaw in found.same_in_row.first["alike"]] == [f"part-00000.parquet row {i}" for i in (2, 3)]
    assert found.good  # told, not refused


def test_two_splits(tmp_path):
    check(tmp_path / "train", [row(i) for i in range(6)])
    leaks = [row(20), Preference("Prompt  3", (png(50), png(51)), [[NAN, 1], [0, NAN]])]
    leaks += [Preference("new", (png(0), Medium("image/jpeg", picture(7, "JPEG"))), [[NAN, 1], [0, NAN]])]
    datasets.write(tmp_path / "test", leaks, "parquet")
    found = checking.check(datasets.open(tmp_path / "train"), against=datasets.open(tmp_path / "test"))
    assert (found.shared_prompts, found.shared_media) == (1, 2) and found.first_shared == ["Prompt  3"]
    assert not found.good and "1 prompts are also in" in found.reasons[0]
    clean = checking.check(
        datasets.open(tmp_path / "train", limit=1), against=datasets.open(tmp_path / "train", limit=0)
    )
    assert clean.good


def test_bad_media_by_reason(tmp_path):
    for i in range(20):
        save(tmp_path / f"{i}.png", i)
    (tmp_path / "outside").mkdir()
    (tmp_path / "data").mkdir()
    for i in range(20):
        (tmp_path / f"{i}.png").rename(tmp_path / "data" / f"{i}.png")
    data = tmp_path / "data"
    secret = save(tmp_path / "outside" / "secret.png")
    (data / "empty.png").touch()
    (data / "cut.png").write_bytes(picture(3)[:-30])
    (data / "page.png").write_text("<html>404</html>")
    (data / "x.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (data / "folder.png").mkdir()
    (data / "link.png").symlink_to(secret)
    os.mkfifo(data / "pipe.png")  # to be read for ever
    bad = ["empty.png", "cut.png", "page.png", "x.svg", "folder.png", "link.png", str(secret), "../outside/secret.png"]
    bad += ["missing.png", "pipe.png"]
    lines = [f"p{i},{path},{i}.png,a" for i, path in enumerate(bad)]
    (data / "t.csv").write_text("\n".join(["prompt,a,b,winner", *lines, "p,12.png,13.png,left"]))
    found = checking.check(datasets.open(data / "t.csv"), max_bad=0.5)
    assert found.bad_media.total == len(bad) and found.media == 20 and found.bad_rows.counts == {"bad winner": 1}
    assert found.bad_media.counts == {
        "empty": 1,
        "damaged": 1,
        "not PNG, JPEG or WebP": 2,
        "no file": 2,
        "outside": 3,
        "missing": 1,
    }
    assert "t.csv line 10, candidate 0 (missing.png)" in str(found) and found.good
    strict = checking.check(datasets.open(data / "t.csv"), max_bad=0.1)
    assert strict.reasons == ["10 of 20 media are bad, more than 10.00%"]


def test_damage_is_told_not_raised(tmp_path):
    (tmp_path / "a.json").write_text('[{"prompt": "p", "path1": "a.png", "path2": "b.png"}, {"prom')
    found = checking.check(datasets.open(tmp_path / "a.json"), max_bad=1.0)
    assert not found.good and "a.json is not valid JSON" in found.reasons[0] and found.rows == 1


def test_texts_and_videos_are_looked_at(tmp_path):
    texts = [
        Medium("text/plain", b"yes"),
        Medium("text/plain", b"\xff"),
        Medium("video/mp4", b"\0\0\0\x18ftypmp42...."),
    ]
    rows = [row(0, media=(texts[0], texts[1])), row(1, media=(texts[2], Medium("video/mp4", b"no video")))]
    nameless = [Medium("application/octet-stream", content) for content in (picture(9), b"garbage")]
    rows += [row(2, media=nameless)]
    found = check(tmp_path, rows, max_bad=0.5)
    assert found.bad_media.counts == {"damaged": 1, "wrong type": 1, "unknown type": 1} and found.good
    assert found.sizes == {"32x24": 1}
