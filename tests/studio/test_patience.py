"""Who sends slowly or says nothing keeps nobody from voting, and is let go of in bounded time."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
import wave
from urllib.parse import urlsplit

import pytest

from palate.studio import guard, patience

from . import make

SILENT, SLOW = 200, 40


@pytest.fixture
def short(monkeypatch):
    """Waits of a second or two, which are half a minute otherwise."""
    monkeypatch.setattr(patience, "HEAD_SECONDS", 2.0)
    monkeypatch.setattr(guard, "BODY_SECONDS", 1.0)


def connected(base: str) -> socket.socket:
    address = urlsplit(base)
    made = socket.create_connection((address.hostname, address.port), 5)
    made.settimeout(20)
    return made


def closed(connection: socket.socket) -> bytes:
    """What the studio said until it closed the connection. Raises TimeoutError if it does not."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(4096):
            said += piece
    return said


def test_slow_and_silent_ones_are_dropped_while_others_vote(tmp_path, short):
    with make.project(tmp_path / "p", 12) as store, make.served(store) as base, contextlib.ExitStack() as held:
        silent = [held.enter_context(connected(base)) for _ in range(SILENT)]
        heads, bodies = ([held.enter_context(connected(base)) for _ in range(SLOW)] for _ in range(2))
        head = f"POST /api/answer HTTP/1.1\r\nhost: {urlsplit(base).netloc}\r\n".encode()
        with make.http(base) as client:
            rater = make.person(client, store, origin=base)
            posting = "".join(f"{name}: {value}\r\n" for name, value in rater.posting.items()).encode()
            for one in bodies:
                one.sendall(head + posting + b"content-length: 1000\r\n\r\n{")
            stop = threading.Event()

            def drip() -> None:  # a byte at a time, of a head and of a body
                at = 0
                while not stop.wait(0.05):
                    at += 1
                    for one in heads:
                        with contextlib.suppress(OSError):
                            one.sendall(head[at % len(head) : at % len(head) + 1].replace(b"\n", b"x"))
                    for one in bodies:
                        with contextlib.suppress(OSError):
                            one.sendall(b" ")

            dripping = threading.Thread(target=drip, daemon=True)
            dripping.start()
            begun, times, leases = time.monotonic(), [], rater.lease(4)
            for turn in range(12):
                at = time.monotonic()
                body = {"lease": leases.pop(0)["id"], "key": f"key-{turn:08}", "answers": {"overall": "left"}, "n": 4}
                reply = rater.post("/api/answer", body).json()
                times.append(time.monotonic() - at)
                assert reply["status"] == "saved"
                leases += [one for one in reply["leases"] if one["id"] not in {lease["id"] for lease in leases}]
            assert sorted(times)[-2] < 0.5, times
            assert {closed(one) for one in silent} == {b""}
            assert {closed(one).partition(b"\r\n")[0] for one in bodies} == {b"HTTP/1.1 408 Request Timeout"}
            for one in heads:
                closed(one)
            assert time.monotonic() - begun < 15
            stop.set()
            dripping.join()
            assert rater.get("/").status_code == 200  # who rests no longer than is usual is not dropped
        assert len(list(store.votes())) == 12


def test_the_head_of_an_answer_and_its_body_go_out_at_once():
    sent: list[bytes] = []

    class Transport:
        write = sent.append

        def close(self) -> None:
            sent.append(b"closed")

        def is_closing(self) -> bool:
            return b"closed" in sent

        def get_write_buffer_size(self) -> int:
            return 3

    later: list = []
    joined = patience.Joined(Transport(), type("Loop", (), {"call_soon": staticmethod(later.append)}))
    for data in (b"head ", b"", b"body"):
        joined.write(data)
    assert sent == [] and len(later) == 1
    later.pop()()
    assert sent == [b"head body"] and joined.taken == len(sent[0]) - 3 and not joined.is_closing()
    joined.write(b"last")
    joined.close()
    assert sent[1:] == [b"last", b"closed"] and joined.is_closing()
    later.pop()()  # nothing is left


def silence(seconds: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as made:
        made.setnchannels(2)
        made.setsampwidth(2)
        made.setframerate(48_000)
        made.writeframes(bytes(4 * 48_000 * seconds))
    return out.getvalue()


def test_who_takes_slowly_is_served_and_who_takes_nothing_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(patience, "TAKE_SECONDS", 0.5)
    sound = silence(100)
    with make.project(tmp_path / "p", 1) as store, make.served(store) as base, contextlib.ExitStack() as held:
        sha256 = store.add_media(sound, "audio/wav").path.split("/")[-1].removesuffix(".wav")
        with make.http(base) as client:
            admin = make.person(client, store, role="admin", origin=base)
        head = f"GET /media/{sha256} HTTP/1.1\r\nhost: {urlsplit(base).netloc}\r\n"
        head += f"cookie: {admin.headers['cookie']}\r\nconnection: close\r\n\r\n"
        slow, none = (held.enter_context(connected(base)) for _ in range(2))
        for one in (slow, none):
            one.sendall(head.encode())
        begun, got = time.monotonic(), 0
        while piece := slow.recv(2**18):
            got += len(piece)
            time.sleep(0.03)
        assert got > len(sound) and time.monotonic() - begun > 1.5  # longer than either wait
        assert 0 < len(closed(none)) < len(sound)


def test_a_connection_that_is_at_work_is_not_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.3)
    with make.project(tmp_path / "p", 2) as store, make.served(store) as base, make.http(base) as client:
        rater = make.person(client, store, origin=base)
        slow = store.lease

        def lease(*arguments, **options):
            time.sleep(0.8)
            return slow(*arguments, **options)

        monkeypatch.setattr(store, "lease", lease)
        assert len(rater.lease(2)) == 2


HEADS = {
    "one long header": (b"x-long: ", b"x" * 4096),
    "headers without end": (b"", b"x-more: 1\r\n" * 400),
    "an address without end": (None, b"x" * 4096),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_without_end_is_refused(kind, tmp_path):
    with make.project(tmp_path / "p", 1) as store, make.served(store) as base, connected(base) as one:
        start, piece = HEADS[kind]
        begin = b"GET / HTTP/1.1\r\nhost: " + urlsplit(base).netloc.encode() + b"\r\n"
        one.sendall(b"GET /" if start is None else begin + start)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 2**24:
                one.sendall(piece)
                sent += len(piece)
        assert sent < 2**24
        with make.http(base) as client:
            assert client.get("/join").status_code == 200


def test_a_head_that_is_too_large_is_told_so_and_a_large_one_is_read(tmp_path):
    with make.project(tmp_path / "p", 1) as store, make.served(store) as base, make.http(base) as client:
        assert client.get("/join", headers={"x-long": "x" * (patience.MAX_HEAD - 1000)}).status_code == 200
        with connected(base) as one:
            one.sendall(b"GET /join HTTP/1.1\r\nx-long: " + b"x" * patience.MAX_HEAD)
            said = closed(one)
        assert said.startswith(b"HTTP/1.1 400") and b"too large" in said
        for size in (patience.MAX_HEAD, 2 * patience.MAX_HEAD):  # however it comes in pieces
            assert client.get("/join", headers={"x-long": "x" * size}).status_code == 400
        for _ in range(3):  # over one connection: each request has the whole of it
            assert client.get("/join", headers={"x-long": "x" * (patience.MAX_HEAD // 2)}).status_code == 200


def test_one_request_at_a_time(tmp_path):
    with make.project(tmp_path / "p", 1) as store, make.served(store) as base, connected(base) as one:
        each = b"GET / HTTP/1.1\r\nhost: " + urlsplit(base).netloc.encode() + b"\r\n\r\n"
        begun, said = time.monotonic(), b""
        with contextlib.suppress(ConnectionError):
            one.sendall(each * (2**22 // len(each)))
            said = closed(one)
        assert time.monotonic() - begun < 5 and said.count(b"HTTP/1.1 401") <= 1
        with make.http(base) as client:
            assert client.get("/join").status_code == 200


def test_a_body_behind_a_wish_for_another_protocol_is_no_request(tmp_path):
    with make.project(tmp_path / "p", 1) as store, make.served(store) as base:
        host = urlsplit(base).netloc
        inner = f"GET /join HTTP/1.1\r\nhost: {host}\r\n\r\n"
        head = f"POST /api/lease HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
        for length in (f"content-length: {len(inner)}\r\n", "transfer-encoding: chunked\r\n"):
            with connected(base) as one, contextlib.suppress(ConnectionError):
                one.sendall((head + length + "\r\n").encode())
                one.sendall(inner.encode())
                said = closed(one)
                assert said.startswith(b"HTTP/1.1 400") and said.count(b"HTTP/1.1") == 1
        with make.http(base) as client:  # without a body it is a request like others
            assert client.get("/join", headers={"connection": "upgrade", "upgrade": "h2c"}).status_code == 200


def test_trailers_are_no_headers(tmp_path):
    with make.project(tmp_path / "p", 1) as store, make.served(store) as base, connected(base) as one:
        with make.http(base) as client:
            rater = make.person(client, store, origin=base)
        named = {name: value for name, value in rater.posting.items() if name != "cookie"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        head = f"POST /api/lease HTTP/1.1\r\nhost: {urlsplit(base).netloc}\r\nconnection: close\r\n{lines}"
        body = f'8\r\n{{"n": 1}}\r\n0\r\ncookie: {rater.headers["cookie"]}\r\n\r\n'
        one.sendall(f"{head}transfer-encoding: chunked\r\n\r\n{body}".encode())
        assert closed(one).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("what", ["trailers", "extensions", "a second request"])
def test_what_comes_beside_a_body_is_bounded(what, tmp_path):
    with make.project(tmp_path / "p", 1) as store, make.served(store) as base, connected(base) as one:
        with make.http(base) as client:
            rater = make.person(client, store, origin=base)
        posting = "".join(f"{name}: {value}\r\n" for name, value in rater.posting.items())
        head = f"POST /api/lease HTTP/1.1\r\nhost: {urlsplit(base).netloc}\r\n{posting}"
        if what == "a second request":
            one.sendall(f"{head}content-length: 10\r\n\r\n{{".encode())
            pieces = b' "n": 1}\r\nGET /' + b"x" * 4000, b"x" * 4096
        else:
            begin = b"8\r\n" + b'{"n": 1}' + b"\r\n0\r\n" if what == "trailers" else b"1;"
            pieces = begin, b"x-more: 1\r\n" * 400 if what == "trailers" else b"x" * 4096
            one.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        sent = 0
        with contextlib.suppress(ConnectionError):
            one.sendall(pieces[0])
            while sent < 2**24:
                one.sendall(pieces[1])
                sent += len(pieces[1])
        assert sent < 2**24


def test_what_is_no_http_is_refused_and_harms_nobody(tmp_path, capfd):
    with make.project(tmp_path / "p", 1) as store, make.served(store) as base:
        host = urlsplit(base).netloc.encode()
        for said in (
            b"\x16\x03\x01\x02\x00\x01",  # the start of TLS
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /\xff\xfe HTTP/1.1\r\nhost: " + host + b"\r\n\r\n",
            b"CONNECT " + host + b" HTTP/1.1\r\nhost: " + host + b"\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n\r\n",
            b"POST /api/lease HTTP/1.1\r\nhost: " + host + b"\r\ncontent-length: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: " + host + b"\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        ):
            with connected(base) as one:
                one.sendall(said)
                assert closed(one).split(b" ")[1][:2] == b"40", said
        with make.http(base) as client:
            assert client.get("/join").status_code == 200
    assert "Traceback" not in capfd.readouterr().err
