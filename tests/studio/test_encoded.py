"""Media of other makes are encoded once, ahead where there is time, and kept where they can be."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time

import pytest
from PIL import Image

from palate.media import MediaError
from palate.records import Comparison, Medium, Sample, now
from palate.studio import context, files
from palate.studio.files import Views, as_encoded_here
from palate.studio.serve import encoding_ahead

from . import make
from .test_media import wav_with_tags

A, B = "a" * 64, "b" * 64


@pytest.fixture
def encodings(monkeypatch) -> list[int]:
    """A number for each picture that is encoded anew."""
    done: list[int] = []
    plain = files.decode

    def counted(medium):
        done.append(len(done))
        time.sleep(0.02)  # as long as others have to come meanwhile
        return plain(medium)

    monkeypatch.setattr(files, "decode", counted)
    return done


@pytest.fixture
def jpeg(tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(make.picture(90, size=300, kind="JPEG"))
    return path


def test_a_picture_is_encoded_once_for_all_times(tmp_path, jpeg, encodings):
    first = Views(tmp_path / "views").of(A, jpeg, "image/jpeg")
    again = Views(tmp_path / "views").of(A, jpeg, "image/jpeg")
    assert encodings == [0] and as_encoded_here(first.data) and again == first
    assert [path.name for path in (tmp_path / "views").glob("*/*")] == [A]


def test_a_sound_is_read_once_for_all_times(tmp_path, monkeypatch):
    path = tmp_path / "sound"
    path.write_bytes(wav_with_tags())
    first = Views(tmp_path / "views").of(A, path, "audio/wav")
    monkeypatch.setattr(files.kinds, "sound", lambda *_: pytest.fail("it was read again"))
    assert Views(tmp_path / "views").of(A, path, "audio/wav") == first
    assert first.data == wav_with_tags(tag=b"")


@pytest.mark.parametrize("damage", [b"", b"\x89PNG", b"<svg onload=alert(1)>"])
def test_what_is_kept_and_damaged_is_made_again(tmp_path, jpeg, encodings, damage):
    first = Views(tmp_path / "views").of(A, jpeg, "image/jpeg")
    (tmp_path / "views" / A[:2] / A).write_bytes(damage)
    assert Views(tmp_path / "views").of(A, jpeg, "image/jpeg") == first
    assert Views(tmp_path / "views").of(A, jpeg, "image/jpeg") == first
    assert encodings == [0, 1]


def test_where_nothing_can_be_kept_pictures_are_seen_all_the_same(tmp_path, jpeg, encodings):
    (tmp_path / "views").write_text("a file, where the folder should be")
    assert as_encoded_here(Views(tmp_path / "views").of(A, jpeg, "image/jpeg").data)
    assert as_encoded_here(Views().of(A, jpeg, "image/jpeg").data)
    assert encodings == [0, 1]


def test_many_who_ask_at_once_wait_for_one(tmp_path, jpeg, encodings):
    views, seen = Views(tmp_path / "views"), []
    threads = [threading.Thread(target=lambda: seen.append(views.of(A, jpeg, "image/jpeg"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encodings == [0] and len(seen) == 12 and len({view.data for view in seen}) == 1


def test_what_cannot_be_read_is_told_and_nothing_of_it_is_kept(tmp_path, jpeg):
    jpeg.write_bytes(jpeg.read_bytes()[:40])
    with pytest.raises(MediaError):
        Views(tmp_path / "views").of(A, jpeg, "image/jpeg")
    assert not [path for path in (tmp_path / "views").rglob("*") if path.is_file()]


def test_only_what_has_to_be_is_encoded_ahead(tmp_path, jpeg, encodings):
    own, gone, empty, sound = (tmp_path / name for name in ("own", "gone", "empty", "sound"))
    own.write_bytes(make.picture(7))
    empty.write_bytes(b"")
    sound.write_bytes(wav_with_tags())
    left = tmp_path / "views" / "aa" / f"{files.ASIDE}1"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a crash")
    os.utime(left, (0, 0))
    (left.parent / f"{files.ASIDE}2").write_bytes(b"of another, which is at it")
    media = [(name * 64, path, "image/png") for name, path in (("0", own), ("1", gone), ("2", empty))]
    media += [(A, jpeg, "image/jpeg"), (B, sound, "audio/wav"), ("c" * 64, own, "video/webm")]
    said: list[str] = []
    views = Views(tmp_path / "views")
    views.make_ahead(media, threading.Event(), said.append)
    assert said == ["Pictures or sounds of other makes are being encoded ahead; raters can begin."] and encodings == [0]
    assert sorted(path.name for path in (tmp_path / "views").glob("*/*")) == [A, B, f"{files.ASIDE}2"]
    views.make_ahead(media, threading.Event(), said.append)
    assert as_encoded_here(views.of(A, jpeg, "image/jpeg").data)
    assert len(said) == 1 and encodings == [0]


def test_a_disk_that_is_nearly_full_is_left_to_the_votes(tmp_path, jpeg, encodings, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, files.RESERVE))
    views, said = Views(tmp_path / "views"), []
    views.make_ahead([(A, jpeg, "image/jpeg")], threading.Event(), said.append)
    assert encodings == [] and len(said) == 1 and "the disk has little room" in said[0].lower()
    assert as_encoded_here(views.of(A, jpeg, "image/jpeg").data)
    assert encodings == [0] and not (tmp_path / "views").exists()


def test_what_cannot_be_encoded_ahead_keeps_nobody(tmp_path, jpeg, encodings, monkeypatch):
    bad = tmp_path / "bad"
    bad.write_bytes(jpeg.read_bytes()[:100])
    media = [(B, bad, "image/jpeg"), (A, jpeg, "image/jpeg")]
    Views(tmp_path / "views").make_ahead(media, threading.Event(), [].append)
    assert [path.name for path in (tmp_path / "views").glob("*/*")] == [A]


def test_what_is_gone_is_not_shown_from_what_is_kept(tmp_path, jpeg):
    Views(tmp_path / "views").of(A, jpeg, "image/jpeg")
    jpeg.unlink()
    with pytest.raises(OSError):
        Views(tmp_path / "views").of(A, jpeg, "image/jpeg")


def test_a_picture_wider_than_is_cut_as_others_is_own_too(tmp_path):
    wide = io.BytesIO()
    Image.effect_noise((17_000, 20), 80).convert("RGB").save(wide, "PNG")
    assert wide.getvalue().count(b"IDAT") > 1 and as_encoded_here(wide.getvalue())


def test_the_studio_encodes_ahead_what_comes_next_and_stops_with_it(tmp_path, encodings):
    with make.project(tmp_path / "p", 0) as store:
        samples = [
            Sample(f"s{n}", "p", Medium("image/jpeg", make.picture(20 + 9 * n, kind="JPEG")), "m", now())
            for n in range(9)
        ]
        store.add_samples(samples)
        pairs = [(0, 1), (2, 3), (4, 5), (0, 5)]  # and three that nobody is shown
        store.add_comparisons(Comparison(f"c{a}{b}", "p", (f"s{a}", f"s{b}"), 1, time=now()) for a, b in pairs)
        done, *_ = store.lease(store.add_rater("ada")[0], 1)
        assert len(store.media_to_show()) == 5 and done.comparison.id == "c01"
        said: list[str] = []
        with encoding_ahead(store, Views(store.folder / context.VIEWS), said.append):
            until = time.monotonic() + 20
            while len(list((store.folder / context.VIEWS).glob("*/*"))) < 5 and time.monotonic() < until:
                time.sleep(0.01)
        assert len(encodings) == 5 and len(said) == 1 and said[0].startswith("  Pictures")
        (store.folder / context.VIEWS).rename(store.folder / "other")
        with encoding_ahead(store, Views(store.folder / context.VIEWS), said.append):
            pass
        assert len(encodings) < 10  # it was stopped before it had them all
