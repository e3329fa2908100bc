"""What must not leave, does not; what others need to read stays."""

from __future__ import annotations

import pytest

from palate.privacy import Private

PRIVATE = Private(frozenset({"alice"}))


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrstuvwxyz",
        "sk-proj-abcdEFGH1234",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0.abc",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
        "password: hunter2",
        "API_KEY=x1",
        "Bearer abc123",
        "/home/alice/data",
        "/srv/x",
        "~/models",
        "~bob/models",
        "../up/there",
        "./here/it/is",
        r"C:\Users\bob\x",
        r"\\server\share\x",
        "$HOME/x",
        r"%USERPROFILE%\x",
        "file:///etc/passwd",
        "bob.smith@example.org",
        "https://bob:hunter2@example.org/x",
        "Alice",
        "by alice_2",
        "host:/srv/x",
        "'/srv/my photos/hats'",
        '"C:\\Users\\bob\\My Documents\\hats"',
    ],
)
def test_it_does_not_leave(secret):
    for text in (secret, f"so ({secret}) it is", f"'{secret}'", f"see: {secret}, and more"):
        left = PRIVATE.scrub(text)
        for piece in (
            secret,
            "hunter2",
            "alice",
            "Alice",
            "bob",
            "/srv",
            "there",
            "it/is",
            "9f86d08",
            "Users",
            "share",
            "hats",
        ):
            assert piece not in left, left
    assert PRIVATE.name(secret) is None and PRIVATE.name(secret, place=True) is None


@pytest.mark.parametrize(
    "text",
    [
        "stabilityai/stable-diffusion-xl-base-1.0",
        "black-forest-labs/FLUX.1-dev",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "world:shapes",
        "world:shapes/alignment",
        "to_out.0",
        "my.package.scorer:load",
        "diffusion_dpo",
    ],
)
def test_a_public_name_stays(text):
    assert PRIVATE.name(text) == text == PRIVATE.scrub(text)


@pytest.mark.parametrize(
    "text", ["apache-2.0 and/or MIT, 1/2 of it", "see https://example.org/license/x?y=1 (2026-11)"]
)
def test_plain_text_stays(text):
    assert PRIVATE.scrub(text) == text


def test_a_place_here_has_no_name_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for place in ("runs/first", "preferences", "some folder/x", "a/b/c"):
        assert PRIVATE.name(place, place=True) is None
    (tmp_path / "runs" / "first").mkdir()
    assert PRIVATE.name("implicit:runs/first") is None
    assert PRIVATE.name("yuvalkirstain/pickapic_v2", place=True) == "yuvalkirstain/pickapic_v2"


def test_users_are_learned_from_paths_and_from_the_machine(monkeypatch):
    monkeypatch.setenv("LOGNAME", "carol")
    known = Private.of({"/home/dave/x": [{"a": r"C:\Users\Erin\y"}], "b": "~frank/z", "c": "/home/root/x"})
    assert {"carol", "dave", "erin", "frank"} <= known.users and "root" not in known.users
    assert known.scrub("Dave-1, ERIN's and carolus") == "(name)-1, (name)'s and carolus"
