"""Media: only what a rater was given, only by hash, without what it says about itself, in ranges that make sense."""

from __future__ import annotations

import io
import struct
import sys
import wave

import pytest
import sqlalchemy as sa
from PIL import Image
from starlette.testclient import TestClient

from palate.records import Comparison, Medium, Sample, now
from palate.store import schema
from palate.studio import context
from palate.studio.app import create
from palate.studio.files import NoRange, as_encoded_here, range_of, view_of
from palate.studio.scrub import patches

from . import make

HASH = "a" * 64
FORMS = [
    "../palate.db", "..%2fpalate.db", "%2e%2e/palate.db", "%2e%2e%2fpalate.db", "%252e%252e%252fpalate.db", "..%c0%afx",
    "..\\palate.db", "..%5cpalate.db", "%2e%2e%5cpalate.db", "....//palate.db", "..;/palate.db", "..%00/palate.db",
    "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "///etc/passwd", "../../../../../../etc/passwd", "./../tokens",
    "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd", "C:\\Windows\\win.ini", "C:/boot.ini",
    "C%3A%5CWindows%5Cwin.ini", "\\\\server\\share\\x", "%5c%5cserver%5cshare", "file:///etc/passwd", "file:%2f%2f/x",
    "http://127.0.0.1/x", "tokens", "palate.db", "project.yaml", "media/", "media/ab", ".", "..", "%2e", "%2e%2e", "~",
    "~root/.ssh/id_rsa", "%7e/x", "con", "nul", "aux.png", "x%00.png", "%00", "%01", "a" * 63, "a" * 65, "A" * 64,
    "a" * 5000, HASH + ".png", HASH + "/..", HASH + "/../tokens", HASH + "%00.png", HASH + "%2f..%2ftokens",
    HASH + "?x", HASH + "#x", HASH + "%20", "%20" + HASH, "%0a" + HASH, HASH + "%0a", "%ff%fe", "%u002e%u002e/", "*",
    "%2a", "?", "[a]",
    "$(cat tokens)", "`id`", "|id", ";id", "%3bid", "${HOME}", "%24%7bHOME%7d", "{{7*7}}", "proc/self/environ",
    "..%ef%bc%8ftokens", "%e2%80%ae", "ａ" * 64, "0x" + "a" * 62, "-1", "1e9", "null", "undefined", "NaN", "%",
]  # fmt: skip


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    with make.project(tmp_path_factory.mktemp("study"), 5, wanted=1) as store:
        (store.folder / "media" / HASH[:2]).mkdir(parents=True, exist_ok=True)
        link = store.folder / "media" / HASH[:2] / f"{HASH}.png"  # not in the database
        link.symlink_to(store.folder / "project.yaml")
        with TestClient(create(store), base_url=make.BASE) as client:
            yield store, client


def test_there_are_eighty_forms():
    assert len(set(FORMS)) >= 80


@pytest.mark.parametrize("role", ["rater", "admin"])
def test_no_path_is_ever_taken_from_a_request(studio, role):
    store, client = studio
    who = make.person(client, store, role=role)
    inside = [(store.folder / name).read_bytes()[:40] for name in ("project.yaml", "instructions.md")]
    for form in FORMS:
        for prefix in ("/media/", "/static/", "/static/../", "/"):
            reply = client.get(f"{make.BASE}{prefix}{form}", headers=who.headers, follow_redirects=False)
            page = reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
            assert reply.status_code in (404, 405) or page, f"{prefix}{form}: {reply.status_code}"
            assert not any(part in reply.content for part in inside), form
            assert b"root:" not in reply.content


def test_only_what_a_rater_was_given(studio):
    store, client = studio
    ada, bob = make.person(client, store, "Ada"), make.person(client, store, "Bob")
    mine = ada.lease()[0]["media"][0]["id"]
    assert ada.get(f"/media/{mine}").status_code == 200
    foreign, missing = bob.get(f"/media/{mine}"), bob.get(f"/media/{'0' * 64}")
    assert foreign.status_code == missing.status_code == 404
    assert foreign.content == missing.content and dict(foreign.headers) == dict(missing.headers)
    assert make.person(client, store, role="admin").get(f"/media/{mine}").status_code == 200


def test_what_was_told_of_a_moment_ago_is_at_hand(tmp_path, monkeypatch):
    with make.project(tmp_path / "p", 2) as store, TestClient(create(store), base_url=make.BASE) as client:
        ada, bob = make.person(client, store, "Ada"), make.person(client, store, "Bob")
        first, second = ada.lease(2)
        (mine,) = bob.lease(1)
        assert ada.answer(first["id"], "key-00000", overall="left").status_code == 200
        looked_up = []
        look_up = store.media_file
        monkeypatch.setattr(store, "media_file", lambda *asked: looked_up.append(asked) or look_up(*asked))
        for medium in first["media"] + second["media"]:
            assert ada.get(f"/media/{medium['id']}").status_code == 200
        assert not looked_up
        foreign = next(one["media"][0]["id"] for one in (first, second) if one["prompt"] != mine["prompt"])
        assert bob.get(f"/media/{foreign}").status_code == 404 and len(looked_up) == 1


def test_raters_learn_the_prompt_and_the_pictures_and_nothing_else(studio):
    store, client = studio
    rater = make.person(client, store)
    lease = rater.lease()[0]
    assert set(lease) == {"id", "prompt", "media", "veiled", "seconds"}
    assert all(set(medium) == {"id", "kind"} for medium in lease["media"])
    replies = [rater.get("/"), rater.get("/instructions"), rater.post("/api/lease", {"n": 1})]
    replies += [rater.get(f"/media/{medium['id']}") for medium in lease["media"]]
    replies.append(rater.answer(lease["id"], "k" * 16, overall="left"))
    for reply in replies:
        assert reply.status_code == 200
        told = reply.content + repr(dict(reply.headers)).encode()
        assert not [secret for secret in make.SECRETS if secret.encode() in told], reply.url
    kinds = {reply.headers["content-type"] for reply in replies if "/media/" in str(reply.url)}
    assert kinds == {"image/png"}


def test_known_and_repeated_ones_look_like_all_others(tmp_path, monkeypatch, drawn_alike):
    monkeypatch.setattr(context, "PROGRESS_SECONDS", 1e6)
    with make.project(tmp_path / "p", 24, known_share=0.3, repeat_share=0.3) as store:
        samples = [Sample(f"k{i}", "a known one", Medium("image/png", make.picture(i)), "m", now()) for i in range(8)]
        store.add_samples(samples)
        store.add_comparisons(
            [
                Comparison(f"known-{i}", "a known one", (f"k{i}", f"k{i + 1}"), 1, expected=f"k{i}")
                for i in range(0, 8, 2)
            ]
        )
        with TestClient(create(store), base_url=make.BASE) as client:
            rater, shapes, progress = make.person(client, store), set(), []
            for turn in range(24):
                reply = rater.post("/api/lease", {"n": 1}).json()
                progress.append(reply["progress"]["done"])
                lease = reply["leases"][0]
                shapes.add((tuple(lease), len(lease["id"]), tuple(tuple(medium) for medium in lease["media"])))
                said = rater.answer(lease["id"], f"key-{turn:012}", overall="left").json()
                assert said == {"status": "saved", "leases": [], "done": turn + 1, "note": "", "whole": (turn + 1) / 72}
        assert len(shapes) == 1
        assert progress == list(range(24))  # counting only some would tell which
        assert any(vote.repeat for vote in store.votes())
        assert any(vote.comparison.startswith("known") for vote in store.votes())


def test_blurred_and_spared(tmp_path):
    with make.project(tmp_path / "p", 0, blur=True) as store:
        make.fill(store, 4)
        pair = [Sample(f"x{i}", "sensitive", Medium("image/png", make.picture(i)), "m", now()) for i in range(2)]
        store.add_samples(pair)
        store.add_comparisons([Comparison("sensitive", "sensitive", ("x0", "x1"), 3, sensitive=True)])
        with TestClient(create(store), base_url=make.BASE) as client:
            rater = make.person(client, store)
            seen = {lease["prompt"]: lease["veiled"] for lease in rater.lease(5)}
            assert seen == {f"prompt {i}": False for i in range(4)} | {"sensitive": True}
            assert rater.post("/api/preference", {"blur": True}).status_code == 200
            assert all(lease["veiled"] for lease in rater.lease(5))
            assert rater.post("/api/preference", {"blur": False, "opted_out": True}).status_code == 200
            prompts = {lease["prompt"] for lease in rater.lease(5)}
            assert prompts == {f"prompt {i}" for i in range(4)}  # at once, though it was given before
            blurred = sa.update(schema.raters).values(blur=True)  # by another process
            store._database.write(lambda connection: connection.execute(blurred))
            assert all(lease["veiled"] for lease in rater.lease(5))


# --- what is sent of a file -------------------------------------------------------------------------------------------


def written(tmp_path, data, name):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def body(view) -> bytes:
    return b"".join(view.read(0, view.size))


def test_a_picture_of_nothing_but_pixels_goes_out_as_it_lies_there(tmp_path):
    path = written(tmp_path, make.picture(7), "a.png")
    assert as_encoded_here(path.read_bytes())
    assert body(view_of(path, "image/png")) == path.read_bytes()


@pytest.mark.parametrize(("kind", "text"), [("PNG", "model-base"), ("JPEG", ""), ("WEBP", "")])
def test_other_pictures_go_out_as_png_with_the_pixels_that_scorers_see(tmp_path, kind, text):
    from palate.media import decode

    data = make.picture(99, text=text, kind=kind)
    path = written(tmp_path, data, f"a.{kind.lower()}")
    view = view_of(path, f"image/{kind.lower()}")
    assert view.type == "image/png" and b"model-base" not in body(view)
    with Image.open(io.BytesIO(body(view))) as sent:
        assert sent.format == "PNG" and not sent.info
        assert sent.tobytes() == decode(Medium(f"image/{kind.lower()}", data)).tobytes()


def test_what_hangs_on_behind_a_picture_is_no_pixel(tmp_path):
    path = written(tmp_path, make.picture(7) + b"model-base", "a.png")
    assert not as_encoded_here(path.read_bytes())
    assert b"model-base" not in body(view_of(path, "image/png"))


def test_only_what_is_encoded_as_here_goes_out_as_it_lies_there(tmp_path):
    noise = Image.effect_noise((300, 200), 80).convert("RGB")
    plain = encoded(noise)
    assert plain.count(b"IDAT") > 1 and as_encoded_here(plain)
    for cut in (*range(60), len(plain) - 1):
        assert not as_encoded_here(plain[:cut])
    others = [encoded(noise, compress_level=1), encoded(noise, optimize=True), encoded(noise.convert("L"))]
    others += [encoded(noise, dpi=(72, 72)), plain + b"x"]
    for number, data in enumerate(others):
        assert not as_encoded_here(data)
        with Image.open(io.BytesIO(data)) as opened:
            pixels = opened.convert("RGB")
        assert body(view_of(written(tmp_path, data, f"{number}.png"), "image/png")) == encoded(pixels)


def encoded(picture, **how) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", **how)
    return out.getvalue()


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def ebml(kind: bytes, content: bytes) -> bytes:
    return kind + b"\x01" + len(content).to_bytes(7, "big") + content


TAG = b"made by model-base, seed 4711"
META = box(b"meta", TAG)
TAGGED = {
    "video/mp4": box(b"ftyp", b"isom0000")
    + box(b"moov", box(b"mvhd", b"Q" * 20) + box(b"udta", TAG) + box(b"trak", box(b"tkhd", b"Q" * 9) + META))
    + box(b"mdat", b"Q" * 50)
    + box(b"uuid", TAG),
    "audio/flac": b"fLaC" + b"\x00\x00\x00\x22" + b"Q" * 34 + b"\x84" + len(TAG).to_bytes(3, "big") + TAG + b"Q" * 40,
    "audio/mpeg": b"ID3\x04\x00\x00\x00\x00\x00" + bytes([len(TAG)]) + TAG + b"\xff\xfb"
    + b"Q" * 200 + b"TAG" + TAG.ljust(125, b" "),
    "video/webm": ebml(b"\x1a\x45\xdf\xa3", b"webm")
    + b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff"
    + ebml(b"\x12\x54\xc3\x67", TAG)
    + ebml(b"\x1f\x43\xb6\x75", b"Q" * 50),
}  # fmt: skip


def wav_with_tags(width: int = 2, tag: bytes = TAG) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(width)
        made.setframerate(8000)
        made.writeframes(b"\x01\x02\x03"[:width] * 500)
    if not tag:
        return out.getvalue()
    data = out.getvalue() + b"LIST" + struct.pack("<I", len(tag) + 1) + tag + b"\0"
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


@pytest.mark.parametrize("kind", [*TAGGED, "audio/wav"])
def test_tags_are_blanked_in_place(tmp_path, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # sounds, too, go out as they are where they cannot be read
    data = wav_with_tags(width=3) if kind == "audio/wav" else TAGGED[kind]
    path = written(tmp_path, data, "medium")
    view = view_of(path, kind)
    sent = body(view)
    assert len(sent) == len(data) and TAG not in sent and b"model-base" not in sent
    assert sent.count(b"Q") == data.count(b"Q")
    for start in range(0, len(data), 7):  # ranges see the same bytes
        assert b"".join(view.read(start, min(start + 11, len(data)))) == sent[start : start + 11]
    if kind == "audio/wav":
        with wave.open(io.BytesIO(sent)) as read:
            assert read.readframes(500) == b"\x01\x02\x03" * 500


def test_sounds_go_out_as_one_kind_of_wav(tmp_path):
    plain, tagged = wav_with_tags(tag=b""), wav_with_tags()
    path = written(tmp_path, plain, "own")
    assert view_of(path, "audio/wav").data == plain  # at hand as others are, which time would tell
    view = view_of(written(tmp_path, tagged, "other"), "audio/wav")
    assert (view.type, view.data) == ("audio/wav", plain)
    for start in (0, 43, 500):
        assert b"".join(view.read(start, start + 11)) == plain[start : start + 11]


@pytest.mark.parametrize("kind", [*TAGGED, "audio/wav"])
def test_damaged_files_are_sent_as_they_are_or_blanked_but_never_crash(tmp_path, kind):
    data = wav_with_tags() if kind == "audio/wav" else TAGGED[kind]
    for cut in range(0, len(data), 5):
        path = written(tmp_path, data[:cut], "cut")
        for at, blank in patches(path, kind):
            assert at >= 0 and len(blank) <= 2**24
        view = view_of(path, kind)
        assert len(body(view)) == (view.size if view.data else cut)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None),
        ("bytes=0-", (0, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=90-500", (90, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
    ],
)
def test_ranges(header, found):
    assert range_of(header, 100) == found


@pytest.mark.parametrize(
    "header",
    ["bytes=100-", "bytes=5-4", "bytes=-0", "bytes=-", "bytes=a-b", "items=0-1", "bytes=0-1,2-3", "bytes=0-" + "9" * 50,
     "bytes=" + ",".join("0-0" for _ in range(10_000)), "", "bytes=--1", "bytes= 0-1"],
)  # fmt: skip
def test_ranges_that_make_no_sense_are_refused(header):
    with pytest.raises(NoRange):
        range_of(header, 100)


def test_ranges_over_http(studio):
    store, client = studio
    rater = make.person(client, store)
    url = f"/media/{rater.lease()[0]['media'][0]['id']}"
    whole = rater.get(url)
    part = rater.get(url, range="bytes=3-9")
    assert part.status_code == 206 and part.content == whole.content[3:10]
    assert part.headers["content-range"] == f"bytes 3-9/{len(whole.content)}"
    refused = rater.get(url, range="bytes=0-1,5-6")
    assert refused.status_code == 416 and refused.headers["content-range"] == f"bytes */{len(whole.content)}"
