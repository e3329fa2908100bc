"""What admins do from the dashboard, in a browser: a rater is erased, all that was said is fetched."""

from __future__ import annotations

import zipfile

import pytest
from starlette.testclient import TestClient

from palate.doors.labelling import hand_out
from palate.studio.app import create
from palate.studio.joining import TokenFile

from . import make
from .pages import browsing


def test_a_rater_is_erased_and_the_data_fetched(tmp_path, chromium):
    with make.project(tmp_path / "study", 3) as store, make.served(store, export=hand_out) as base:
        ids = {}
        for name in ("Ada", "Bo <b>"):
            ids[name], token = store.add_rater(name)
            TokenFile(store.folder).add(name, "rater", token)
            for lease in store.lease(ids[name], 2):
                store.answer(ids[name], lease.id, f"key-{lease.id}", {"overall": "left"}, 3.0)
        _, admin = store.add_rater("Boss", "admin")
        with browsing(chromium, base, admin) as page:
            page.goto(f"{base}/admin")
            with page.expect_download() as fetched:
                page.click("#export")
            fetched.value.save_as(tmp_path / "all.zip")
            page.wait_for_selector("#export-told:has-text('Snapshot')")
            with zipfile.ZipFile(tmp_path / "all.zip") as opened:
                assert opened.testzip() is None and "manifest.json" in opened.namelist()
            row = page.locator("tr", has_text="Bo <b>")
            row.locator("[data-erase]").click()
            assert page.text_content("#erase-title") == "Erase Bo <b>?"
            page.click("#erase-not")
            assert len(store.raters()) == 3
            row.locator("[data-erase]").click()
            page.check("#erase-votes")
            with page.expect_navigation():
                page.click("#erase-sure")
            assert page.locator("tr", has_text="Bo <b>").count() == 0
            assert page.locator("tr", has_text="Boss").locator("[data-erase]").count() == 0  # not oneself
        assert {vote.source for vote in store.votes()} == {ids["Ada"]}
        assert [name for name, _, _ in TokenFile(store.folder).read()] == ["Ada"]


@pytest.mark.parametrize("body", [{"amendments": []}, {"amendments": [{"comparison": "comparison-0", "wanted": 3}]}])
def test_what_cannot_be_said_of_a_comparison_is_refused(tmp_path, body):
    with make.project(tmp_path / "p", 1) as store, TestClient(create(store), base_url=make.BASE) as client:
        admin = make.person(client, store, role="admin")
        assert admin.post("/admin/amend", body).status_code == 422
        missing = admin.post("/admin/amend", {"amendments": [{"comparison": "none", "sensitive": True}]})
        assert missing.status_code == 422 and "'none'" in missing.json()["error"]
        good = {"amendments": [{"comparison": "comparison-0", "expected": "sample-0-1"}]}
        assert admin.post("/admin/amend", good).json() == {"changed": 1}
        assert [made.expected for made in store.comparisons()] == ["sample-0-1"]
