"""`palate label` as it is started, and the studio that stays open while something waits for its votes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

from palate import views
from palate.cli import main
from palate.doors import awaited, labelling
from palate.records import Comparison, Medium, Ranking, Sample, now
from palate.studio.joining import TokenFile, cookie_name
from palate.studio.serve import StudioError, listen, opened, prepare, reached_by, serve

from . import make


def test_it_starts_at_once_serves_and_stops_on_ctrl_c(tmp_path):
    with make.project(tmp_path / "p", 1):
        pass
    command = [sys.executable, "-m", "palate", "label", "--project", str(tmp_path / "p"), "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        told = ""
        while "Ctrl-C" not in told:
            told += run.stdout.readline()
        base = re.search(r"http://[\d.:]+", told)[0]
        assert httpx2.get(f"{base}/join").status_code == 200
        took, worked = time.monotonic() - started, processor_seconds(run.pid)
        admin, token, *_ = (token for _, _, token in TokenFile(tmp_path / "p").read())
        with httpx2.Client(base_url=base) as client:
            assert client.post("/api/join", json={"token": token}, headers={"origin": base}).json()["to"]
            assert client.get("/").status_code == 200
        with pytest.raises(StudioError, match=f"runs already, at {base}: open it there"):
            serve(tmp_path / "p", port=0)
        for verb, *rest in (["revoke", "rater 2"], ["erase", "rater 1", "--votes", "--yes"]):
            with pytest.raises(SystemExit) as left:  # another process asks the one that has the project open
                main(["project", verb, str(tmp_path / "p"), *rest])
            assert left.value.code == 0
        tokens = (tmp_path / "p" / "tokens").read_text()
        assert "rater 1" not in tokens and "rater 2" not in tokens and "rater 3" in tokens
        assert httpx2.get(f"{base}/", headers={"cookie": f"{cookie_name(tmp_path / 'p')}={token}"}).status_code == 401
        run.send_signal(signal.SIGINT)
        out, errors = run.communicate(timeout=20)
        assert run.returncode == 0 and "acknowledged" in out
        assert errors == ""
        assert (told + out).count(token) == 1
        assert re.search(r"Your link: (\S+)", told)[1] == f"{base}/join#{admin}" and (told + out).count(admin) == 1
    print(f"from the command to the first page: {took:.2f} s, of which the processor worked {worked:.2f}")
    assert worked < 3  # about 1; whatever else runs on the machine
    assert took < 15  # alone on two cores it is under 2


def processor_seconds(process: int) -> float:
    """How long a process has worked, with those of its children that ended; 0 where Linux does not tell."""
    stat = Path(f"/proc/{process}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()  # from the third on: the name may hold spaces
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def test_asked_to_terminate_it_leaves_nothing_behind(tmp_path):
    with make.project(tmp_path / "p", 1):
        pass
    command = [sys.executable, "-m", "palate", "label", "--project", str(tmp_path / "p"), "--port", "0", "--open"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "BROWSER": "true"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        while not (tmp_path / "p" / "open-studio.html").exists():
            assert run.poll() is None
            time.sleep(0.02)
        until = time.monotonic() + 20
        told = ""
        while "Ctrl-C" not in told:
            told += run.stdout.readline()
        while not answers(re.search(r"http://[\d.:]+", told)[0]) and time.monotonic() < until:
            time.sleep(0.02)
        run.terminate()
        out, errors = run.communicate(timeout=20)
    assert (run.returncode, errors) == (0, "") and "acknowledged" in out
    assert not (tmp_path / "p" / "open-studio.html").exists()


def answers(base: str) -> bool:
    try:
        return httpx2.get(f"{base}/join", timeout=1).status_code == 200
    except httpx2.HTTPError:
        return False


def test_videos_that_their_files_tell_apart_are_told_of(tmp_path):
    """Of two comparisons one shows an MP4 beside a WebM."""
    webm, mp4 = ("video/webm", b"\x1a\x45\xdf\xa3"), ("video/mp4", b"\0\0\0\x10ftypisom")
    with make.project(tmp_path / "p", 1) as store:
        media = [Medium(kind, head + bytes([number])) for number, (kind, head) in enumerate((webm, webm, mp4))]
        store.add_samples(Sample(f"v{i}", "a clip", medium, f"m{i}", now()) for i, medium in enumerate(media))
        pairs = (("v0", "v1"), ("v1", "v2"))
        store.add_comparisons(Comparison(f"clip {a}", "a clip", (a, b), 1, time=now()) for a, b in pairs)
        told: list[str] = []
        prepare(store, host="127.0.0.1", port=0, write=told.append).listening.close()
    assert "videos of several types, by which raters can tell models apart: 1." in "".join(told)


def test_a_port_that_is_taken_is_said_in_one_line():
    taken = listen("127.0.0.1", 0)
    with pytest.raises(StudioError, match="choose another by --port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(StudioError, match="cannot be used"):
        listen("no.such.host.invalid", 0)
    taken.close()


def test_names_by_which_it_is_reached():
    assert reached_by("127.0.0.1", ["Study.Example"]) == {"study.example"}
    assert {"192.168.1.7"} <= reached_by("192.168.1.7", [])
    assert reached_by("0.0.0.0", []) >= {"0.0.0.0"}


def test_the_browser_is_opened_without_a_token_in_a_command_line(tmp_path, monkeypatch):
    urls: list[str] = []
    monkeypatch.setattr("webbrowser.open", urls.append)
    file = TokenFile(tmp_path)
    file.add("admin", "admin", "secret-token")
    with opened(True, "http://127.0.0.1:1", file, tmp_path):
        page = tmp_path / "open-studio.html"
        assert page.stat().st_mode & 0o777 == 0o600 and "secret-token" in page.read_text()
    assert not page.exists()
    assert urls == [page.as_uri()] and "secret-token" not in urls[0]


def test_waiting_for_the_votes_of_a_batch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(labelling, "POLL_SECONDS", 0.02)
    with make.project(tmp_path / "p", 2, wanted=2) as store, labelling.open_studio(store, port=0) as studio:
        assert awaited.lacking(store, "") == 4
        waiting = threading.Thread(target=studio.wait, args=(store, ""))
        waiting.start()
        with make.http(studio.base) as client:
            ada, bob = (make.person(client, store, name, origin=studio.base) for name in ("Ada", "Bob"))
            first, second = ada.lease(2)
            assert ada.answer(first["id"], "ada-skips", overall="skip").json()["status"] == "saved"
            assert awaited.lacking(store, "") == 3  # who skips is not waited for
            ada.answer(second["id"], "ada-second", overall="tie")
            first, second = bob.lease(2)
            bob.answer(second["id"], "bob-second", overall="tie")
            assert waiting.is_alive() and awaited.lacking(store, "") == 1
            said, end = "", time.monotonic() + 20
            while "1 judgement of" not in said and time.monotonic() < end:
                time.sleep(0.02)
                said += capsys.readouterr().out
            assert "1 judgement of" in said
            bob.answer(first["id"], "bob-first", overall="left")
        waiting.join(10)
        assert not waiting.is_alive()


def test_what_a_ranking_says_of_pairs():
    ranking = Ranking("r", (("a",), ("b", "c")), "me", now())
    assert list(views.outcomes(ranking)) == [("a", "b", 1.0), ("a", "c", 1.0), ("b", "c", 0.5)]
