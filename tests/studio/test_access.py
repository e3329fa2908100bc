"""Nobody gets in, learns or changes what they should not: every route, every role, every way a request can lie."""

from __future__ import annotations

import json
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from palate.store import Store, StoreUnavailable, database
from palate.studio.app import create
from palate.studio.guard import MAX_BODY
from palate.studio.joining import Guesses, TokenFile
from palate.studio.serve import StudioError, is_loopback, serve

from . import make

# What answers somebody who has no token, and why. Anything else that does is a hole.
OPEN = {
    ("GET", "/join"): "the page that a join link opens",
    ("POST", "/api/join"): "takes the token",
    ("GET", "/static/{name}"): "files of the package, the same for everybody",
}
ADMIN = {("GET", "/admin")} | {("POST", f"/admin/{name}") for name in ("raters", "revoke", "erase", "amend", "export")}
ADMIN |= {("GET", "/admin/export/{snapshot}")}
BODIES = {
    "/api/join": {"token": "x" * 43},
    "/api/lease": {"n": 1},
    "/api/answer": {"lease": "none", "key": "k" * 16, "answers": {"overall": "left"}},
    "/api/undo": {"key": "u" * 16},
    "/api/preference": {"blur": False},
    "/api/leave": {},
    "/admin/raters": {"name": "Eve"},
    "/admin/revoke": {"rater": "nobody"},
    "/admin/erase": {"rater": "nobody", "votes": True},
    "/admin/export": {},
    "/admin/amend": {"amendments": [{"comparison": "none", "sensitive": True}]},
}


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    with make.project(tmp_path_factory.mktemp("study"), 4) as store:
        app = create(store)
        with TestClient(app, base_url=make.BASE) as client:
            yield app, store, client


def routes(app) -> list[tuple[str, str]]:
    found = []
    for route in walked(app.routes):
        assert isinstance(route, Route), f"{route!r} is of a kind that this test does not know: teach it"
        found += [(method, route.path) for method in sorted(route.methods - {"HEAD"})]
    return found


def walked(routes):
    for route in routes:
        inner = getattr(getattr(route, "original_router", None), "routes", None)
        if inner is None:
            yield route
        else:
            yield from walked(inner)


def asked(client, method, path, headers=None):
    path = path.replace("{name}", "studio.css").replace("{sha256}", "0" * 64).replace("{snapshot}", "none")
    if method == "GET":
        return client.get(path, headers=headers)
    headers = {"origin": make.BASE} | (headers or {})
    return client.post(path, json=BODIES[path], headers=headers)


def test_every_route_without_a_token(studio):
    app, _, client = studio
    found = routes(app)
    assert len(found) >= 13
    assert {route for route in found if route[1].startswith("/admin")} == ADMIN
    for method, path in found:
        status = asked(client, method, path).status_code
        if (method, path) == ("POST", "/api/join"):
            assert status == 401  # it was no token
        elif (method, path) in OPEN:
            assert status == 200
        else:
            assert status == 401, f"{method} {path} answers {status} to somebody without a token"
    assert set(OPEN) <= set(found)


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/metrics", "/.env", "/media/", "/admin/x"])
def test_what_is_not_there_says_so_to_those_inside_only(studio, path):
    _, store, client = studio
    assert client.get(path).status_code == 401
    assert make.person(client, store, role="admin").get(path).status_code == 404


def test_other_methods_and_websockets_are_refused(studio):
    _, store, client = studio
    rater = make.person(client, store)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert client.request(method, "/api/answer", headers=rater.posting).status_code == 405
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/lease"):
        pass


def test_roles_by_routes(studio):
    app, store, client = studio
    rater, admin = make.person(client, store), make.person(client, store, role="admin")
    for method, path in routes(app):
        if path == "/api/join":
            continue
        for who, allowed in ((rater, (method, path) not in ADMIN), (admin, True)):
            reply = asked(client, method, path, who.headers if method == "GET" else who.posting)
            refused = reply.status_code == 403
            assert refused != allowed, f"{method} {path}: {reply.status_code}"


def test_a_revoked_an_altered_and_an_expired_token_let_nobody_in(studio):
    _, store, client = studio
    rater = make.person(client, store)
    assert rater.get("/").status_code == 200
    altered = make.Person(
        client, make.client_cookie(store), rater.token[:-1] + ("A" if rater.token[-1] != "A" else "B")
    )
    assert altered.get("/").status_code == 401
    store.revoke(rater.id)
    assert rater.get("/").status_code == 401
    assert rater.post("/api/lease", {"n": 1}).status_code == 401
    assert client.post("/api/join", json={"token": rater.token}, headers={"origin": make.BASE}).status_code == 401
    _, expired = store.add_rater("late", expires="2020-01-01T00:00:00+00:00")
    assert make.Person(client, make.client_cookie(store), expired).get("/").status_code == 401


LIES = {
    "no origin": {"origin": ""},
    "null": {"origin": "null"},
    "another site": {"origin": "http://evil.example"},
    "another port": {"origin": "http://127.0.0.1:9999"},
    "a name that begins alike": {"origin": "http://127.0.0.1.evil.example"},
    "with a user": {"origin": "http://127.0.0.1@evil.example"},
    "a file": {"origin": "file://127.0.0.1"},
    "no address": {"origin": "http://["},
    "cross-site by the browser": {"sec-fetch-site": "cross-site"},
    "same-site by the browser": {"sec-fetch-site": "same-site"},
    "a form": {"content-type": "application/x-www-form-urlencoded"},
    "text": {"content-type": "text/plain"},
    "multipart": {"content-type": "multipart/form-data; boundary=x"},
    "no csrf": {"x-csrf": ""},
    "another's csrf": {"x-csrf": "0" * 64},
    "csrf that is no ASCII": {"x-csrf": "é"},
    "another host": {"host": "evil.example"},
    "an address of its own": {"host": "evil.example:80", "origin": "http://evil.example:80"},
    "a host with a user": {"host": "a@127.0.0.1"},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_state_change_from_elsewhere_is_refused(studio, lie):
    app, store, client = studio
    admin = make.person(client, store, role="admin")
    before = len(store.raters())
    for method, path in routes(app):
        if method == "POST" and not (path == "/api/join" and "csrf" in lie):
            headers = {name: value.encode() for name, value in (admin.posting | LIES[lie]).items()}
            reply = client.post(path, content=json.dumps(BODIES[path]), headers=headers)
            assert reply.status_code == 403, f"{path}: {reply.status_code}"
    assert len(store.raters()) == before


def test_reading_needs_a_known_host(studio):
    _, store, client = studio
    rater = make.person(client, store)
    for host in ("evil.example", "127.0.0.1.nip.io", "", "[::1", "127.0.0.1:80:80", "localhost.evil"):
        assert rater.get("/", host=host).status_code == 403
    for host in ("127.0.0.1:1234", "localhost", "[::1]:80", "LOCALHOST"):
        assert rater.get("/", host=host).status_code == 200


def test_nothing_changes_by_reading(studio):
    _, store, client = studio
    rater = make.person(client, store)
    before = store.progress(), store.raters(), store.held(rater.id)
    for path in ("/", "/instructions", "/join", "/media/" + "0" * 64):
        rater.get(path)
    assert (store.progress(), store.raters(), store.held(rater.id)) == before


def test_headers_of_every_answer(studio):
    _, store, client = studio
    rater = make.person(client, store)
    for reply in (client.get("/"), rater.get("/"), client.get("/static/label.js"), rater.get("/nothing")):
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy and "data:" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] in ("no-store", "no-cache")
        assert "server" not in reply.headers
    lease = rater.lease()[0]
    assert rater.get(f"/media/{lease['media'][0]['id']}").headers["cache-control"].startswith("private")


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(studio):
    _, store, client = studio
    rater = make.person(client, store)
    reply = client.post("/api/join", json={"token": rater.token}, headers={"origin": make.BASE})
    set_cookie = reply.headers["set-cookie"]
    client.cookies.clear()
    assert "HttpOnly" in set_cookie and "SameSite=strict" in set_cookie and "Path=/" in set_cookie
    assert rater.token not in reply.text
    page = rater.get("/")
    assert rater.token not in page.text


def test_guessing_tokens_is_slowed_down(studio):
    app, store, client = studio
    app.state.studio.guesses = Guesses(most=5)
    rater = make.person(client, store)
    headers = {"origin": make.BASE}
    statuses = [client.post("/api/join", json={"token": f"guess-{i}"}, headers=headers).status_code for i in range(8)]
    assert statuses == [401] * 5 + [429] * 3
    assert client.post("/api/join", json={"token": rater.token}, headers=headers).status_code == 429
    app.state.studio.guesses = Guesses()


def test_guesses_are_forgotten_in_time():
    guesses = Guesses(most=2, seconds=60, addresses=3)
    for at in (0.0, 1.0):
        guesses.failed("here", at)
    assert guesses.too_many("here", 2.0) and not guesses.too_many("there", 2.0)
    assert not guesses.too_many("here", 61.5)
    for number in range(10):
        guesses.failed(f"address {number}", 70.0)
    assert len(guesses._failed) <= 3


def test_bodies_have_a_limit(studio):
    _, store, client = studio
    rater = make.person(client, store)
    huge = json.dumps({"n": 1, "x": "a" * MAX_BODY})
    assert client.post("/api/lease", content=huge, headers=rater.posting).status_code == 413
    chunks = (b"a" * 1024 for _ in range(200))
    assert client.post("/api/lease", content=chunks, headers=rater.posting).status_code == 413


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/lease", {"n": 0}),
        ("/api/lease", {"n": 10_000}),
        ("/api/lease", {"n": 1, "rater": "another"}),
        ("/api/lease", []),
        ("/api/answer", {"lease": "x", "key": "short", "answers": {"overall": "left"}}),
        ("/api/answer", {"lease": "x", "key": "k" * 16, "answers": {"overall": "sample-1-0"}}),
        ("/api/answer", {"lease": "x", "key": "k" * 16, "answers": {}}),
        ("/api/answer", {"lease": "x", "key": "k" * 16, "answers": {"overall": [[0, 9]]}}),
        ("/api/answer", {"lease": "x", "key": "k" * 16, "answers": {"overall": "left"}, "seconds": -1}),
        ("/api/answer", {"lease": "x", "key": "k" * 16, "answers": {"overall": "left"}, "reason": "<b>"}),
        ("/api/answer", {"lease": "x", "key": "<script>alert(1)</script>", "answers": {"overall": "left"}}),
        ("/api/undo", {"key": None}),
    ],
)
def test_what_cannot_be_is_one_sentence_that_repeats_nothing(studio, path, body):
    _, store, client = studio
    reply = make.person(client, store).post(path, body)
    assert reply.status_code == 422
    assert set(reply.json()) == {"error"} and "<" not in reply.text and "sample-1" not in reply.text


def test_one_rater_cannot_answer_anothers_lease(studio):
    _, store, client = studio
    ada, bob = make.person(client, store, "Ada"), make.person(client, store, "Bob")
    lease = ada.lease()[0]["id"]
    foreign, missing = (bob.answer(name, "k" * 16, overall="left") for name in (lease, "lease-that-is-not"))
    assert foreign.status_code == missing.status_code == 422
    assert foreign.text.replace(lease, "x") == missing.text.replace("lease-that-is-not", "x")
    assert not list(store.votes())


def test_a_database_that_is_busy_refuses_nothing_for_good(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_MS", 30)
    with make.project(tmp_path / "p", 1) as store, TestClient(create(store), base_url=make.BASE) as client:
        rater = make.person(client, store)
        lease = rater.lease()[0]["id"]
        with closing(sqlite3.connect(tmp_path / "p" / database.FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            busy = rater.answer(lease, "k" * 16, overall="left")
            other.execute("ROLLBACK")
        assert busy.status_code == 503  # a page tries again
        assert database.FILE not in busy.text and "p" not in busy.json()["error"].split()
        assert rater.answer(lease, "k" * 16, overall="left").json()["status"] == "saved"

        def gone(token):
            raise StoreUnavailable("postgresql://someone@host: the connection is lost")

        app = create(store)
        lost = {"rater_of": gone, "rater_lately_of": lambda token: None}
        monkeypatch.setattr(app.user_middleware[0], "kwargs", app.user_middleware[0].kwargs | lost)
        with TestClient(app, base_url=make.BASE) as cut_off:
            reply = make.Person(cut_off, make.client_cookie(store), rater.token).get("/")
        assert reply.status_code == 503 and "someone" not in reply.text


def test_cookies_of_others_lock_nobody_out(studio):
    _, store, client = studio
    mine = make.person(client, store).headers["cookie"]
    for foreign in ('foo={"a": 1}', "a b=c", "=;;", "x", 'q="un;ended'):
        for cookie in (f"{foreign}; {mine}", f"{mine};{foreign}"):
            assert client.get("/", headers={"cookie": cookie}).status_code == 200, cookie


def test_invited_and_revoked_from_the_dashboard(studio):
    _, store, client = studio
    admin = make.person(client, store, role="admin")
    link = admin.post("/admin/raters", {"name": "Grace\tHopper\nx"}).json()["link"]
    token = link.partition("/join#")[2]
    assert client.get("/", headers={"cookie": f"{make.client_cookie(store)}={token}"}).status_code == 200
    file = TokenFile(store.folder)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert token in {row[2] for row in file.read()}
    rater = store.rater_of(token)
    assert admin.post("/admin/revoke", {"rater": rater.id}).status_code == 200
    assert store.rater_of(token) is None and token not in file.path.read_text()


def test_other_hosts_are_refused_before_there_are_tokens(tmp_path):
    with make.project(tmp_path / "p", 1):
        pass
    with pytest.raises(StudioError, match="nobody has a token"):
        serve(tmp_path / "p", host="0.0.0.0", port=0, write=lambda line: None)
    assert not (tmp_path / "p" / "tokens").exists()
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "[::1]", "localhost", "0.0.0.0", "192.168.1.4")] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


def test_the_first_start_makes_tokens_that_the_store_cannot_tell(tmp_path, monkeypatch):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    with make.project(tmp_path / "p", 1):
        pass
    said: list[str] = []
    serve(tmp_path / "p", port=0, write=said.append)
    rows = TokenFile(tmp_path / "p").read()
    assert [role for _, role, _ in rows] == ["admin", "rater", "rater", "rater"]
    assert stat.S_IMODE((tmp_path / "p" / "tokens").stat().st_mode) == 0o600
    assert all(sum(token in line for line in said) == 1 for _, _, token in rows)
    assert all(f"/join#{token}" in "\n".join(said) for _, _, token in rows)
    admin = rows[0][2]
    yours, to_send = (next(i for i, line in enumerate(said) if words in line) for words in ("Your link", "To send"))
    assert admin in said[yours] and all(token in said[to_send + i] for i, (_, _, token) in enumerate(rows) if i)
    database = b"".join(path.read_bytes() for path in (tmp_path / "p").glob("palate.db*"))
    assert all(token.encode() not in database for _, _, token in rows)
    said.clear()
    serve(tmp_path / "p", port=0, write=said.append)  # again: nothing is made anew, and one link is told
    assert TokenFile(tmp_path / "p").read() == rows
    assert [line for line in said if f"/join#{admin}" in line] == [line for line in said if "Your link" in line]
    assert sum(token in line for _, _, token in rows for line in said) == 1
    assert "tokens" in "".join(said)
    serve(tmp_path / "p", port=0, raters=2, write=said.append)
    assert len(TokenFile(tmp_path / "p").read()) == 6
    with Store.open(tmp_path / "p") as store:
        assert len(store.raters()) == 6
    (tmp_path / "p" / "tokens").unlink()  # or a kill came between the store and the file
    serve(tmp_path / "p", port=0, write=said.append)
    ((_, role, token),) = TokenFile(tmp_path / "p").read()
    assert role == "admin" and "Your link: http://127.0.0.1" in said[-4] and said[-4].endswith(f"/join#{token}")
    with Store.open(tmp_path / "p") as store:
        assert store.rater_of(token).role == "admin" and len(store.raters()) == 7


def test_links_that_are_made_at_once_are_all_kept(tmp_path):
    files = [TokenFile(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: files[n % 4].add(f"rater {n}", "rater", f"token-{n}"), range(40)))
    assert {token for _, _, token in files[0].read()} == {f"token-{n}" for n in range(40)}
