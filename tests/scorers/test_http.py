"""The scorer behind HTTP: against the reference server, and against servers that fail in every way."""

from __future__ import annotations

import base64
import itertools
import json
import os
import socket
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from palate import remote, wire
from palate.doors import serving
from palate.remote import RemoteError, Service, Unavailable
from palate.scorers import http
from palate.scorers.http import HttpScorer
from tests.scorers.servers import Answer, scripted, served, unused_port

TOKEN = "a-token-of-this-test"
SEEN = []  # what the scorer below was given


class Bright:
    """Mean brightness, and the length of the prompt; knows nothing of black pictures."""

    dimensions = ("bright", "length")

    def __call__(self, prompts, media):
        SEEN.append(list(media))
        light = np.array([np.asarray(picture, np.float64).mean() for picture in media])
        return {"bright": np.where(light == 0, np.nan, light), "length": np.array([len(text) for text in prompts])}


def load():
    return Bright()


def picture(level: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (level, level, level))


def client(url: str, fingerprint: str = "", **how) -> HttpScorer:
    how = {"timeout": 5.0, "max_wait": 5.0, "token": TOKEN} | how
    return HttpScorer(Service(url, "the scorer", **how), fingerprint)


HEALTH = {"protocol": http.PROTOCOL, "fingerprint": "f1", "dimensions": ["d"], "max_items": 8}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.01)
    with scripted() as it:
        it.reply = honest()
        yield it


def honest(scores=None, ids=None, **more):
    """A server that says what it should, or other ids or scores."""

    def reply(request):
        if request[1] == "/health":
            return Answer(HEALTH)
        given = request[3]["ids"]
        values = scores(request[3]) if scores else {"d": [float(name.split("-")[1]) for name in given]}
        return Answer({"ids": ids(given) if ids else given, "scores": values, "fingerprint": "f1", **more})

    return reply


# --- the reference server ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    app = serving.create(Bright(), "bright", TOKEN)
    with served(app) as url:
        yield url, app.state.fingerprint


def test_scores_are_those_of_the_scorer_itself(real):
    url, fingerprint = real
    prompts, media = ["a", "bb", "c", "dddd"], [picture(level) for level in (10, 0, 255, 77)]
    scorer = client(url, fingerprint)
    assert scorer.dimensions == ("bright", "length") and scorer.fingerprint == fingerprint
    scores = scorer(prompts, media)
    for name, values in Bright()(prompts, media).items():
        np.testing.assert_array_equal(scores[name], values)
    assert np.isnan(scores["bright"][1]) and scorer.unknown == 1
    np.testing.assert_array_equal(np.asarray(SEEN[-2][2]), np.asarray(media[2]))  # bit for bit what was sent


def test_more_samples_than_a_request_may_hold_are_sent_in_several(real, monkeypatch):
    monkeypatch.setattr(serving, "MAX_ITEMS", 3)
    levels = list(range(1, 8))
    scores = client(real[0])(["x"] * 7, [picture(level) for level in levels])
    assert scores["bright"].tolist() == levels


def test_without_the_token_nothing_is_served(real):
    for path in ("/health", "/score", "/docs", "/openapi.json", "/", "/nothing"):
        for token in (None, "wrong", TOKEN + "x"):
            with pytest.raises(RemoteError, match="refuses the token"):
                Service(real[0], "it", token=token, max_wait=2).call("GET", path)


def test_what_is_no_json_is_not_read(real):
    import http.client

    for kind in ("application/octet-stream", "application/x-pickle", "application/python-pickle", ""):
        line = http.client.HTTPConnection(real[0].removeprefix("http://"), timeout=5)
        line.request("POST", "/score", b"\x80\x04.", {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind})
        assert line.getresponse().status == 415
        line.close()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ids": ["1", "1"], "prompts": ["a", "b"]}, "an id of its own"),
        ({"ids": ["1"], "prompts": ["a", "b"]}, "one length"),
        ({"ids": [1, 2], "prompts": ["a", "b"]}, "list of texts"),
        ({"ids": ["1", "2"], "prompts": ["a", "b"], "media": [{"type": "image/svg+xml", "data": ""}] * 2}, "not read"),
        ({"ids": ["1", "2"], "prompts": ["a", "b"], "media": [{"type": "image/png", "data": "!"}] * 2}, "base64"),
        ({"ids": ["1", "2"], "prompts": ["a", "b"], "media": [{"type": "image/png", "data": "AAAA"}] * 2}, "picture"),
        ({"protocol": "other"}, "protocol"),
    ],
)
def test_a_request_that_cannot_be_is_refused_with_a_line(real, asked, said):
    media = [wire.encode(picture(9))] * 2
    whole = {"protocol": http.PROTOCOL, "media": media} | asked
    with pytest.raises(RemoteError, match=said):
        Service(real[0], "it", token=TOKEN, max_wait=2).call("POST", "/score", whole)


def test_a_body_beyond_the_cap_is_refused(real, monkeypatch):
    monkeypatch.setattr(serving, "MAX_BODY_BYTES", 1000)
    with pytest.raises(RemoteError, match="413"):
        Service(real[0], "it", token=TOKEN, max_wait=2).call("POST", "/score", {"x": "y" * 2000})


def test_pixels_beyond_the_cap_are_refused_and_never_sent(real, monkeypatch):
    """A PNG of nothing is small, what it decodes to is not: of all pictures of a request together, too."""
    monkeypatch.setattr(wire, "MAX_PIXELS_AT_ONCE", 40)
    assert client(real[0])(["x"] * 5, [picture(level) for level in range(1, 6)])["bright"].tolist() == [1, 2, 3, 4, 5]
    whole = {"protocol": http.PROTOCOL, "ids": ["1", "2", "3"], "prompts": ["x"] * 3}
    with pytest.raises(RemoteError, match=r"413.*40 pixels"):
        asked = whole | {"media": [wire.encode(picture(1))] * 3}
        Service(real[0], "it", token=TOKEN, max_wait=2).call("POST", "/score", asked)


class Scaled:
    """A scorer of two dimensions whose scores of the golden pictures are as given, near enough."""

    dimensions = ("cosine", "size")

    def __init__(self, *factors: float) -> None:
        self._factors = itertools.cycle(factors)

    def __call__(self, prompts, media):
        factor, unknown = next(self._factors), np.nan
        cosines = np.array([0.1235, -0.5, unknown, 0.25])[: len(media)]
        return {"cosine": cosines * factor, "size": np.array([1e4, 2e4, 3e4, 0.0])[: len(media)] * factor}


def test_a_scorer_is_known_again_whatever_the_last_bits_of_its_scores():
    mine = serving.fingerprint(Scaled(1.0), "b")
    for factor in (1.0, 1 - 1e-6, 1 + 1e-6, 1 + 1e-3):
        assert wire.same_scorer(mine, serving.fingerprint(Scaled(factor), "b"))
    for factor in (1.01, 0.99, -1.0, 0.0, np.nan, np.inf):
        assert not wire.same_scorer(mine, serving.fingerprint(Scaled(factor), "b"))
    assert not wire.same_scorer(mine, serving.fingerprint(Scaled(1.0), "another"))
    assert "#" not in mine and "," not in mine and "=" not in mine and ":" not in mine  # it goes into a name


def test_a_restarted_server_is_the_same_scorer_and_one_with_other_weights_is_not(server):
    fingerprints = [serving.fingerprint(Scaled(factor), "b") for factor in (1.0, 1 + 1e-6, 1.01)]
    said = iter([fingerprints[1], fingerprints[1], fingerprints[2]])
    server.reply = lambda request: Answer({**HEALTH, "fingerprint": next(said)})
    scorer = client(server.url, fingerprints[0])
    scorer.check([])
    scorer._look()
    with pytest.raises(RemoteError, match="another scorer than before"):
        scorer._look()


def test_a_judge_that_samples_or_compares_is_known_by_name():
    noisy = [serving.fingerprint(Scaled(*factors), "b") for factors in ((1.0, 1.0, 1.2), (1.3, 0.9), (1.0, 1.002))]
    assert len(set(noisy)) == 1 and noisy[0] != serving.fingerprint(Scaled(1.0), "b")

    class Compares(Scaled):
        groupwise = True

        def __call__(self, prompts, media):
            raise AssertionError("real questions cost money")

    assert serving.fingerprint(Compares(1.0), "b") == serving.fingerprint(Compares(1.0), "b")
    assert serving.fingerprint(Compares(1.0), "b") != serving.fingerprint(Compares(1.0), "another")


@pytest.mark.parametrize(
    "other", ["v1.1", "0123456789abcdef~AAAA", "0123456789abcdef~" + "A" * 23, "0123456789abcdef~"]
)
def test_fingerprints_of_other_servers_are_compared_letter_by_letter(other):
    assert wire.same_scorer(other, other) and not wire.same_scorer(other, other[:-1] + "B")
    assert not wire.same_scorer(other, serving.fingerprint(Scaled(1.0), "b"))


def test_the_token_is_made_once_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "deep" / "token"
    token = serving.token_of(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(token) >= 32
    assert serving.token_of(path) == token
    path.chmod(0o644)
    with pytest.raises(serving.ServingError, match="chmod 600"):
        serving.token_of(path)


def test_the_command_serves_a_scorer_without_torch(tmp_path, monkeypatch):
    """In a process where torch, transformers and diffusers cannot be imported."""
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'diffusers', 'peft', 'accelerate'): sys.modules[name] = None\n"
        "from palate.cli import main\n"
        "main(['serve-scorer', 'plain_scorer', '--port', '0'])\n"
    )
    (tmp_path / "plain_scorer").mkdir()
    (tmp_path / "plain_scorer" / "__init__.py").write_text("")
    (tmp_path / "plain_scorer" / "one.py").write_text(
        "import numpy as np\nclass One:\n    golden = None\n"
        "    def __call__(self, prompts, media): return {'one': np.ones(len(prompts))}\n"
        "def load(): return One()\n"
    )
    script = script.replace("'plain_scorer'", "'plain_scorer.one'")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    process = subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True)
    try:
        name = process.stdout.readline().split()[-1]
        assert name.startswith("http:127.0.0.1:")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        scorer = http.load(name.removeprefix("http:"))
        assert scorer(["a", "b"], [picture(1), picture(2)])["one"].tolist() == [1.0, 1.0]
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


# --- scores are never made up, and never moved ------------------------------------------------------------------------


def test_ten_thousand_scores_in_any_order_come_back_to_their_samples(server):
    rng = np.random.default_rng(0)

    def reply(request):
        if request[1] == "/health":
            return Answer({**HEALTH, "max_items": 1000})
        ids, texts = request[3]["ids"], request[3]["prompts"]
        order = rng.permutation(len(ids))
        scores = {"d": [float(texts[i]) for i in order]}
        return Answer({"ids": [ids[i] for i in order], "scores": scores})

    server.reply = reply
    wanted = np.arange(10_000)
    texts = [str(number) for number in wanted]
    assert (client(server.url)(texts, ["x"] * 10_000)["d"] == wanted).all()


def comparing(most):
    """A server that compares the candidates of a call, so many at most; a score says how many of its prompt it saw."""

    def reply(request):
        if request[1] == "/health":
            return Answer({**HEALTH, "max_items": most, "groupwise": True})
        texts = request[3]["prompts"]
        return Answer({"ids": request[3]["ids"], "scores": {"d": [texts.count(text) for text in texts]}})

    return reply


def test_a_prompt_of_a_scorer_that_compares_is_in_one_request(server, monkeypatch):
    server.reply = comparing(4)
    prompts = ["x", "y", "x", "y", "x", "z", "y", "w"]
    scores = client(server.url)(prompts, [f"text {i}" for i in range(8)])["d"]
    assert scores.tolist() == [3, 3, 3, 3, 3, 1, 3, 1]
    asked = [request[3] for request in server.requests if request[3]]
    assert [call["prompts"] for call in asked] == [["x"] * 3, ["y"] * 3 + ["z"], ["w"]]
    assert [entry["text"] for entry in asked[0]["media"]] == ["text 0", "text 2", "text 4"]
    monkeypatch.setattr(http, "_BYTES_AT_ONCE", 8)  # less than two of these texts: a prompt stays whole
    assert client(server.url)(prompts, ["a text"] * 8)["d"].tolist() == [3, 3, 3, 3, 3, 1, 3, 1]
    assert [len(request[3]["ids"]) for request in server.requests[-4:]] == [3, 3, 1, 1]


def test_a_prompt_with_more_candidates_than_a_request_may_hold_is_refused(server):
    server.reply = comparing(4)
    with pytest.raises(RemoteError, match=r"takes 4 samples at once \(max_items\).*5 candidates of 'x'") as error:
        client(server.url)(["y", "y", *["x"] * 5], ["t"] * 7)
    assert "\n" not in str(error.value) and not [request for request in server.requests if request[3]]


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_none_is_unknown_and_counted(server, bad):
    server.reply = honest(lambda asked: {"d": [1.0, bad, 3]})
    scorer = client(server.url)
    scores = scorer(["a", "b", "c"], ["x"] * 3)["d"]
    assert scores[[0, 2]].tolist() == [1.0, 3.0] and np.isnan(scores[1]) and scorer.unknown == 1


@pytest.mark.parametrize(
    ("scores", "ids", "said"),
    [
        ({"d": [1.0, True, 3.0]}, None, "True.*no number"),
        ({"d": [1.0, "0.5", 3.0]}, None, "'0.5'.*no number"),
        ({"d": [1.0, [2.0], 3.0]}, None, "no number"),
        ({"d": [1.0, 10**400, 3.0]}, None, "no float"),
        ({"d": [1.0, 2.0]}, None, "2 values"),
        ({"d": [1.0] * 4}, None, "4 values"),
        ({"d": 1.0}, None, "no list"),
        ({"other": [1.0] * 3}, None, "it had said d"),
        ({}, None, "without `scores`"),
        ([1.0] * 3, None, "without `scores`"),
        (None, None, "without `scores`"),
        ({"d": [1.0] * 3}, lambda ids: None, "did not send the `ids`"),
        ({"d": [1.0] * 3}, lambda ids: [1, 2, 3], "did not send the `ids`"),
        ({"d": [1.0] * 3}, lambda ids: [ids[0], *ids[:2]], "not the same ones"),
        ({"d": [1.0] * 3}, lambda ids: [*ids[:2], "other"], "not the same ones"),
        ({"d": [1.0] * 3}, lambda ids: ids[:2], "2 ids back for 3"),
        ({"d": [1.0] * 3}, lambda ids: [*ids, ids[0]], "4 ids back for 3"),
    ],
)
def test_a_reply_that_does_not_fit_is_refused_as_a_whole(server, scores, ids, said):
    server.reply = honest(lambda asked: scores, ids)
    with pytest.raises(RemoteError, match=said) as error:
        client(server.url)(["a", "b", "c"], ["x"] * 3)
    assert not isinstance(error.value, Unavailable) and "\n" not in str(error.value)


def test_another_scorer_at_the_same_address_is_seen_within_a_hundred_calls(server, monkeypatch):
    scorer, said = client(server.url), itertools.chain(["f1"] * 3, itertools.repeat("f2"))
    server.reply = lambda request: (
        Answer({**HEALTH, "fingerprint": next(said)})
        if request[1] == "/health"
        else Answer({"ids": request[3]["ids"], "scores": {"d": [1.0]}})
    )
    with pytest.raises(RemoteError, match="another scorer than before"):
        for _ in range(3 * http.CHECK_EVERY):
            scorer(["a"], ["x"])
    assert scorer._calls == 3 * http.CHECK_EVERY  # the first look was before the first call
    server.reply = honest(fingerprint="f3")  # one that says it with every reply is seen at once
    fresh = client(server.url)
    server.reply = honest()
    fresh(["a"], ["x"])
    server.reply = lambda request: Answer({"ids": request[3]["ids"], "scores": {"d": [1.0]}, "fingerprint": "f3"})
    with pytest.raises(RemoteError, match="another scorer"):
        fresh(["a"], ["x"])


def test_a_fingerprint_in_the_name_is_held_to(server):
    assert client(server.url, "f1")(["a"], ["x"])["d"].tolist() == [0.0]
    with pytest.raises(RemoteError, match="not f9"):
        client(server.url, "f9").check(["a"])


@pytest.mark.parametrize("health", [[], {}, {"protocol": "other/1"}, {**HEALTH, "fingerprint": ""},
                                    {**HEALTH, "max_items": 0}, {**HEALTH, "dimensions": [1]},
                                    {**HEALTH, "judges": "videos"}, {**HEALTH, "judges": [1]}])  # fmt: skip
def test_what_is_no_such_server_is_refused_before_any_sampling(server, health):
    server.reply = lambda request: Answer(health)
    with pytest.raises(RemoteError):
        client(server.url).check(["a"])


def test_a_server_says_which_media_it_judges(server):
    assert client(server.url).judges == ()
    server.reply = lambda request: Answer({**HEALTH, "judges": ["videos", "sounds"]})
    assert client(server.url).judges == ("videos", "sounds")


# --- every wait has an end --------------------------------------------------------------------------------------------


def hang(handler):
    time.sleep(30)


def drip(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(300):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def drip_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(300):
        handler.wfile.write(b"X-%d: y\r\n" % number)
        handler.wfile.flush()
        time.sleep(0.1)


def cut(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


FAULTS = {
    "500": lambda: Answer({}, 500), "503": lambda: Answer({}, 503), "no json": lambda: Answer(b"<html>"),
    "deep": lambda: Answer(b"[" * 200_000),
    "hang": lambda: Answer(raw=hang), "drip": lambda: Answer(raw=drip),
    "drip in headers": lambda: Answer(raw=drip_headers),
    "cut off": lambda: Answer(raw=cut), "reset": lambda: Answer(raw=reset),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_lasts_ends_within_the_time_allowed(server, fault):
    server.reply = lambda request: FAULTS[fault]()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="run the same command again") as error:
        client(server.url, timeout=0.3, max_wait=0.7)(["a"], ["x"])
    assert time.monotonic() - began < 1.7 and error.value.exit_code == 75


@pytest.mark.parametrize("fault", ["500", "503", "no json", "hang", "cut off", "reset"])
def test_a_fault_that_passes_costs_nothing(server, fault):
    real, count = server.reply, itertools.count()
    server.reply = lambda request: FAULTS[fault]() if next(count) in (0, 1, 3) else real(request)
    assert client(server.url, timeout=0.3)(["a", "b"], ["x", "y"])["d"].tolist() == [0.0, 1.0]


def test_a_server_that_is_not_there_is_waited_for(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(remote, "SAY_EVERY_S", 0.2)
    said = []
    service = Service(f"http://127.0.0.1:{unused_port()}", "the scorer", max_wait=0.9, say=said.append)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="refused"):
        service.call("GET", "/health")
    assert time.monotonic() - began < 1.5
    assert 2 <= len(said) <= 5 and all("trying for" in line for line in said)


def test_a_reply_too_large_is_not_read(server):
    def endless(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            handler.wfile.write(b" " * 65536)

    server.reply = lambda request: Answer(raw=endless)
    with pytest.raises(RemoteError, match="more than 1,000,000 bytes"):
        client(server.url, max_reply=10**6)(["a"], ["x"])


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_its_place_never_sees_the_token(server, status):
    with scripted() as other:
        server.reply = lambda request: Answer({}, status, Location=other.url + "/health")
        with pytest.raises(RemoteError, match="redirects"):
            client(server.url)(["a"], ["x"])
        assert other.requests == []


def test_the_server_says_when_to_come_again(server):
    real, times = server.reply, []

    def reply(request):
        times.append(time.monotonic())
        return Answer({}, 429, Retry_After="0.4") if len(times) == 1 else real(request)

    server.reply = reply
    client(server.url)(["a"], ["x"])
    assert times[1] - times[0] >= 0.4
    with pytest.raises(Unavailable):  # a wish beyond what is allowed ends it at once
        server.reply = lambda request: Answer({}, 429, Retry_After="3600")
        client(server.url, max_wait=1.0)(["a"], ["x"])


# --- addresses and tokens ---------------------------------------------------------------------------------------------


def test_the_token_goes_into_a_header_and_nowhere_else(server):
    scorer = client(server.url)
    scorer(["a"], ["x"])
    assert all(headers["authorization"] == f"Bearer {TOKEN}" for _, _, headers, _ in server.requests)
    assert TOKEN not in json.dumps([(path, body) for _, path, _, body in server.requests])
    assert TOKEN not in repr(scorer._service)
    server.reply = lambda request: Answer({"error": "no\nway"}, 400)
    with pytest.raises(RemoteError, match="no way") as error:
        client(server.url)(["a"], ["x"])
    assert TOKEN not in str(error.value)


def test_a_token_never_travels_in_the_open(monkeypatch):
    with pytest.raises(RemoteError, match="unencrypted"):
        Service("http://judge.example", "it", token="t")
    Service("https://judge.example", "it", token="t")
    Service("http://localhost:1", "it", token="t")


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://u:secret@h", "http://h?q", "http://h:99999", "h:1"])
def test_what_is_no_address_is_refused_and_its_secret_not_told(url):
    with pytest.raises(RemoteError, match="no address") as error:
        Service(url, "it")
    assert "secret" not in str(error.value)


def test_a_name_says_where_and_the_surroundings_say_the_token(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PALATE_SCORER_TOKEN", raising=False)
    assert http.load("127.0.0.1:8765")._service._token is None
    token = serving.token_of(serving.default_token_file())
    for name in ("127.0.0.1:8765", "//127.0.0.1:8765", "http://localhost:8765/", "[::1]:8765#abc"):
        assert http.load(name)._service._token == token
    assert http.load("https://judge.example")._service._token is None  # this machine's token stays on it
    (tmp_path / "t").write_text("other\n")
    monkeypatch.setenv("PALATE_SCORER_TOKEN_FILE", str(tmp_path / "t"))
    assert http.load("https://judge.example")._service._token == "other"
    monkeypatch.setenv("PALATE_SCORER_TOKEN", "a b")
    with pytest.raises(RemoteError, match="PALATE_SCORER_TOKEN"):
        http.load("127.0.0.1:8765")
    with pytest.raises(RemoteError, match="needs an address"):
        http.load("")


# --- media ------------------------------------------------------------------------------------------------------------


def test_media_come_through_as_they_are():
    import torch

    rng = np.random.default_rng(0)
    still = Image.fromarray(rng.integers(0, 255, (5, 7, 3), np.uint8))
    wave = rng.uniform(-1, 1, (2, 100)).astype(np.float32)
    there = lambda medium: wire.decode(json.loads(json.dumps(wire.encode(medium))))  # noqa: E731
    np.testing.assert_array_equal(np.asarray(there(still)), np.asarray(still))
    np.testing.assert_array_equal(
        np.stack([np.asarray(frame) for frame in there([still, still])])[1], np.asarray(still)
    )
    np.testing.assert_array_equal(there(wave), wave)
    np.testing.assert_array_equal(there(torch.from_numpy(wave)), wave)
    assert there("a text") == "a text"
    assert len(there(rng.uniform(0, 1, (3, 4, 4, 3)))) == 3


def test_a_sound_keeps_its_rate():
    there = lambda medium: wire.decode(json.loads(json.dumps(wire.encode(medium))))  # noqa: E731
    wave = np.linspace(-1, 1, 200, dtype=np.float32).reshape(2, 100)
    sound = there((wave, 44100))
    np.testing.assert_array_equal(sound, wave)
    for same in (sound, sound[:, 10:], sound.copy(), there(sound), there(sound[:, ::2]), there(sound[0])):
        assert same.rate == 44100
    assert there((wave, np.int64(8000))).rate == 8000 and there((sound, 8000)).rate == 8000
    assert there(wave).rate == there(there(wave)).rate == 0  # nobody said it, and nobody makes it up
    assert wire.unwav(base64.b64decode(wire.encode(wave)["data"])).rate == 48000  # for servers that know no better


@pytest.mark.parametrize("rate", [0, -1, 44100.0, "44100", None, 2**40])
def test_a_rate_that_is_none_is_not_sent(rate):
    with pytest.raises(wire.WireError, match="rate is a whole number"):
        wire.encode((np.zeros((1, 4), np.float32), rate))


def test_a_waveform_that_lies_on_its_side_is_not_sent():
    with pytest.raises(wire.WireError, match=r"is it \[C, L\]"):
        wire.encode((np.zeros((70000, 2), np.float32), 48000))


def test_sound_as_others_write_it_is_read():
    import io
    import wave

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2), file.setsampwidth(2), file.setframerate(44100)
        file.writeframes(np.array([[0, 16384], [-32768, 8192]], "<i2").tobytes())
    sound = wire.unwav(buffer.getvalue())
    assert sound.tolist() == [[0.0, -1.0], [0.5, 0.25]] and sound.rate == 44100
    for bad in (b"", b"RIFF", buffer.getvalue()[:30], b"RIFF\0\0\0\0WAVE"):
        with pytest.raises(wire.WireError):
            wire.unwav(bad)


@pytest.mark.parametrize("medium", [3, None, [], [1], {"a": 1}, object(), (1, 2), (np.zeros((1, 2, 2, 3)), 8)])
def test_what_is_no_medium_is_not_sent(medium):
    with pytest.raises(wire.WireError):
        wire.encode(medium)


# --- a whole command --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("gone", [2, 4])  # in the second round's scoring; in the last comparison
def test_training_stops_with_75_when_the_scorer_is_gone_and_goes_on_to_the_same_bits(gone, tmp_path, monkeypatch):
    """`palate train` in processes of its own against a server that answers, is gone, and answers again."""
    import yaml

    from tests import zoo
    from tests.training import forks

    model = tmp_path / "model"
    zoo.build("sd15").save_pretrained(model)
    monkeypatch.setenv("PALATE_REMOTE_MAX_WAIT", "0.5")
    monkeypatch.setenv("PALATE_SCORER_TOKEN", TOKEN)

    def command(folder, url) -> tuple[int, str]:
        folder.mkdir(exist_ok=True)
        name = f"http:{url}"
        recipe = {
            "model": {"name": str(model), "device": "cpu", "lora": {"rank": 2}, "check_kind": False},
            "algorithm": {"name": "d3po"},
            "rollout": {"prompts": ["a cat", "a dog"], "scorers": {name: 1.0}, "prompts_per_round": 2, "k": 2,
                        "rounds": 2, "num_inference_steps": 2},
            "training": {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-3},
            "evaluation": {"prompts": ["a hat"], "scorers": {name: 1.0}, "n": 1, "num_inference_steps": 2,
                           "max_prompts": 1},
            "output": str(folder / "run"),
        }  # fmt: skip
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        script = "from palate.cli import main; import sys; main(sys.argv[1:])"
        words = [sys.executable, "-c", script, "train", str(folder / "recipe.yaml"), "training.evaluate_every=100"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    with scripted() as server:
        calls, down = 0, False

        def reply(request):
            nonlocal calls
            if request[1] == "/health":
                return Answer(HEALTH)
            calls += 1
            if down and calls >= gone:
                return Answer({}, 503)
            pictures = [wire.decode(entry) for entry in request[3]["media"]]
            light = [float(np.asarray(picture).mean()) for picture in pictures]
            return Answer({"ids": request[3]["ids"], "scores": {"d": light}, "fingerprint": "f1"})

        server.reply = reply
        code, said = command(tmp_path / "straight", server.url)
        assert code == 0, said
        calls, down = 0, True
        code, said = command(tmp_path / "again", server.url)
        assert code == 75, said
        assert "error: the scorer at 127.0.0.1" in said and "run the same command again" in said
        assert TOKEN not in said
        down = False
        code, said = command(tmp_path / "again", server.url)
        assert code == 0, said
    first, second = (forks.fingerprint(tmp_path / name / "run") for name in ("straight", "again"))
    assert {k: v for k, v in first.items() if k != "folders"} == {k: v for k, v in second.items() if k != "folders"}
    results = [json.loads((tmp_path / name / "run" / "result.json").read_text()) for name in ("straight", "again")]
    assert results[0]["tuned"] == results[1]["tuned"]
