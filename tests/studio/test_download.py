"""The export of the dashboard: what the command writes, in a zip of the same bytes, for admins, by no path."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile

import pytest
from starlette.testclient import TestClient

from palate.doors import giving
from palate.doors.labelling import hand_out
from palate.studio import download
from palate.studio.app import create

from . import make


@pytest.fixture
def studio(tmp_path):
    with make.project(tmp_path / "p", 4) as store:
        app = create(store, export=hand_out)
        with TestClient(app, base_url=make.BASE) as client:
            yield store, client


def answer(person, n: int) -> None:
    for lease in person.lease(n):
        assert person.answer(lease["id"], f"key-{lease['id']}", overall="left").json()["status"] == "saved"


def test_a_snapshot_is_the_same_zip_as_often_as_it_is_made(studio, tmp_path, monkeypatch):
    store, client = studio
    admin, rater = make.person(client, store, role="admin"), make.person(client, store)
    empty = admin.post("/admin/export", {})
    assert empty.status_code == 422 and "nothing was said" in empty.json()["error"]
    answer(rater, 2)
    made = admin.post("/admin/export", {}).json()
    first = admin.get(made["link"])
    assert first.status_code == 200 and len(first.content) == made["bytes"]
    assert first.headers["content-type"] == "application/zip" and first.headers["cache-control"] == "no-store"
    assert made["snapshot"] in first.headers["content-disposition"]
    assert admin.post("/admin/export", {}).json() == made  # nothing came in: it is still there
    answer(rater, 1)
    later = admin.post("/admin/export", {}).json()
    assert later["snapshot"] != made["snapshot"]
    assert admin.get(made["link"]).status_code == 404  # only the latest is kept
    giving.export(store.folder, tmp_path / "out", snapshot=made["snapshot"])
    with zipfile.ZipFile(io.BytesIO(first.content)) as opened:
        assert opened.testzip() is None
        told = {name: hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()}
        assert {entry.date_time for entry in opened.infolist()} == {download.TIME}
    files = sorted(path for path in (tmp_path / "out").iterdir())
    assert told == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    for path in files:
        os.utime(path, (10**9, 10**9))
        path.chmod(0o600)
    with io.BytesIO() as again:
        download.pack(tmp_path / "out", again)
        assert again.getvalue() == first.content
    assert not [path for path in store.folder.iterdir() if path.name.startswith("palate-tmp-")]


def test_nobody_else_gets_it_and_no_name_is_looked_up(studio):
    store, client = studio
    admin, rater = make.person(client, store, role="admin"), make.person(client, store)
    answer(rater, 1)
    link = admin.post("/admin/export", {}).json()["link"]
    assert rater.get(link).status_code == 403 and client.get(link).status_code == 401
    assert rater.post("/admin/export", {}).status_code == 403
    assert admin.post("/admin/export", {}, **{"x-csrf": ""}).status_code == 403
    assert admin.post("/admin/export", {"out": "/tmp"}).status_code == 422
    for name in ("..%2fpalate.db", "project.yaml", "%2e%2e", "0" * 40, "none"):
        assert admin.get(f"/admin/export/{name}").status_code == 404


def test_what_is_dropped_is_read_to_its_end(tmp_path):
    (tmp_path / "y").write_bytes(b"z" * (2 * download.CHUNK + 5))
    file = (tmp_path / "y").open("rb")
    parcel = download.Parcel("two", file)
    one, other = parcel.read(), parcel.read()
    pieces = [next(one), next(other)]
    parcel.drop()
    pieces += [*one, *other]
    assert sum(map(len, pieces)) == 2 * parcel.size and file.closed
    assert list(parcel.read()) == []


def test_a_studio_that_was_given_no_export_has_none(tmp_path):
    with make.project(tmp_path / "p", 1) as store, TestClient(create(store), base_url=make.BASE) as client:
        assert make.person(client, store, role="admin").post("/admin/export", {}).status_code == 404
