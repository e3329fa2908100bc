"""What the store promises when things go wrong: kills, full disks, two writers, settings that would lose votes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from palate import project
from palate.durable import StorageError
from palate.store import Store, StoreError, StoreFull, StoreUnavailable, database, schema, upgrade
from tests.store.make import filled, sample

LEFT = {"overall": "left"}
slow = pytest.mark.slow


def voter(*arguments: str | Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "tests.store.voter", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


POINTS = ["2:statement:4", "2:statement:9", "2:commit", "2:committed"]
MORE = [f"{vote}:statement:{number}" for vote in (0, 1) for number in range(1, 10, 2)] + ["0:commit", "4:committed"]


@pytest.mark.parametrize("point", [*POINTS, *(pytest.param(point, marks=slow) for point in MORE)])
def test_a_kill_inside_a_vote_loses_nothing_acknowledged(folder, point):
    place = folder()
    with Store.open(place) as store:
        rater, _ = filled(store, 8, 1).add_rater("ada")
    done = voter(place, rater, "8", point)
    if point.partition("statement:")[2] in ("5", "7", "9") and not place.joinpath(database.FILE).exists():
        assert done.returncode == 0 and len(re.findall("acked", done.stdout)) == 8  # PostgreSQL is told all in four
        return
    assert done.returncode == -signal.SIGKILL, done.stderr
    acked = re.findall(r"acked (\d+)", done.stdout)
    asked = re.findall(r"asked (\d+) (\w+)", done.stdout)
    (number, lease) = asked[-1]
    assert len(asked) == len(acked) + 1 and number == point.partition(":")[0]  # it was killed inside that vote
    with Store.open(place) as store:
        found = [vote.id.split("/")[1] for vote in store.votes()]
        in_flight = f"key {number}"
        assert [name for name in found if name != in_flight] == [f"key {n}" for n in acked]
        kept = in_flight in found
        assert kept == point.endswith("committed")
        # The client was told nothing and sends it again.
        assert store.answer(rater, lease, in_flight, LEFT).status == ("known" if kept else "saved")
        assert [vote.id.split("/")[1] for vote in store.votes()] == [*(f"key {n}" for n in acked), in_flight]
        assert store.progress().votes == len(asked)
        if not place.joinpath(database.FILE).exists():
            return
    with sqlite3.connect(place / database.FILE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.mark.parametrize("number", [3, 20, *(pytest.param(n, marks=slow) for n in (1, 2, 8, 14, 26, 30, 34))])
def test_a_kill_inside_a_migration_leaves_the_old_schema_or_the_new(folder, number):
    place = folder()
    done = voter(place, "nobody", "0", f"open:{number}")
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    with Store.open(place) as store:
        with store._database.read() as connection:
            assert upgrade.version(connection) == upgrade.HEAD
        assert store.add_samples([sample(0)]) == 1


def test_migrations_make_the_tables_that_are_used(opened):
    store = opened()
    with store._database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_a_newer_schema_is_refused(opened):
    store = opened()
    store._database.write(lambda c: c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")))
    place = store.folder
    store.close()
    for write in (True, False):
        with pytest.raises(StoreError, match=r"schema 9999 of a newer Palate.*update Palate"):
            Store.open(place, write=write)


def test_a_database_of_another_project_is_refused(opened):
    store = opened()
    store.close()
    path = store.folder / project.SETTINGS
    path.write_text(re.sub(r"^id: .*", "id: another", path.read_text(), flags=re.M))
    with pytest.raises(StoreError, match="belongs to another project"):
        Store.open(store.folder)


# --- SQLite -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(project.DATABASE, raising=False)
    project.create(tmp_path / "p")
    return tmp_path / "p"


def test_a_second_writer_is_refused(place):
    with Store.open(place):
        with pytest.raises(StorageError, match=rf"in use by another process that writes.*process {os.getpid()}"):
            Store.open(place)
        Store.open(place, write=False).close()
    Store.open(place).close()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_every_acknowledgement_comes_after_a_sync(place, tmp_path):
    with Store.open(place) as store:
        rater, _ = filled(store, 6, 1).add_rater("ada")
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-o", str(trace), "-e", "trace=fsync,fdatasync,write", "-e", "signal=none")
    done = voter(place, rater, "6", before=strace)
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("this machine lets nobody be traced")
    assert done.returncode == 0, done.stderr
    events = re.findall(r'fdatasync\(|fsync\(|write\(1, "(asked|acked)', trace.read_text())
    assert events.count("acked") == 6
    for number, event in enumerate(events):
        if event == "acked":
            since = len(events[:number]) - events[:number][::-1].index("asked")
            assert "" in events[since:number], "acknowledged without a sync since it was asked"


def test_a_database_that_does_not_sync_is_refused(place, monkeypatch):
    connect = database._connect

    def careless(path: Path, mode: str) -> sqlite3.Connection:
        made = connect(path, mode)
        made.execute("PRAGMA synchronous=OFF")
        return made

    monkeypatch.setattr(database, "_connect", careless)
    with pytest.raises(StoreError, match="synchronous is 0, and votes are safe with 2"):
        Store.open(place)


def test_only_the_writer_can_write(place):
    with Store.open(place) as store:
        filled(store, 1)
        with store._database.read() as connection, pytest.raises(sa.exc.OperationalError, match="readonly"):
            connection.execute(sa.text("DELETE FROM samples"))


@pytest.mark.parametrize("damage", [lambda data: os.urandom(len(data)), lambda data: data[: len(data) // 2 + 100]])
def test_a_damaged_file_is_told_in_one_line(place, damage):
    with Store.open(place) as store:
        filled(store, 50)
    file = place / "palate.db"
    file.write_bytes(damage(file.read_bytes()))
    for write in (True, False):
        said = pytest.raises(StoreError, match=r"^\S+palate\.db is damaged \(.*\): put a copy of it back, .*$")
        with said, Store.open(place, write=write) as store:
            list(store.samples())


def test_a_folder_that_cannot_be_written_to_is_read(place, monkeypatch):
    with Store.open(place) as store:
        filled(store, 2)
    held = sorted(place.iterdir())
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with Store.open(place, write=False) as store:
        assert len(list(store.samples())) == 4 and sorted(place.iterdir()) == held


def test_a_full_disk_is_told_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv(project.DATABASE, raising=False)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with Store.open(disk / "p", create=True) as store:
            rater, _ = filled(store, 40, 1).add_rater("ada")
            (disk / "filler").write_bytes(b"\0" * (shutil.disk_usage(disk).free - 70_000))
            acked = 0
            with pytest.raises(StoreFull, match=r"palate\.db: the disk is full.*make room"):
                while True:
                    (lease,) = store.lease(rater, 1)
                    store.answer(rater, lease.id, f"k{acked}", LEFT, reason="x" * 900)
                    acked += 1
            assert 0 <= len(list(store.votes())) - acked <= 1
            assert len(list(store.samples())) == 80  # reading goes on
            (disk / "filler").unlink()
            (lease,) = store.lease(rater, 1)
            assert store.answer(rater, lease.id, "later", LEFT).status == "saved"
            assert len(list(store.votes())) == acked + 1
    finally:
        subprocess.run(["umount", disk], check=True)


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest.mark.postgres
def test_a_server_that_does_not_sync_is_refused(postgres, tmp_path, monkeypatch):
    import psycopg

    url = postgres.url()
    monkeypatch.setenv(project.DATABASE, url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
        try:
            with pytest.raises(StoreError, match=r"runs with fsync=off.*set fsync=on"):
                for _ in range(50):  # the server reads its settings in its own time
                    Store.open(tmp_path / "p", create=True).close()
        finally:
            connection.execute("ALTER SYSTEM RESET fsync")
            connection.execute("SELECT pg_reload_conf()")


@pytest.mark.postgres
def test_commits_wait_for_the_sync_whatever_the_session_says(postgres, tmp_path, monkeypatch):
    monkeypatch.setenv(project.DATABASE, postgres.url() + "%20-csynchronous_commit%3Doff")
    with Store.open(tmp_path / "p", create=True) as store, store._database.read() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


@pytest.mark.postgres
def test_several_processes_may_write(postgres, tmp_path, monkeypatch):
    monkeypatch.setenv(project.DATABASE, postgres.url())
    with Store.open(tmp_path / "p", create=True) as one, Store.open(tmp_path / "p") as other:
        assert one.add_samples([sample(0)]) == 1 and other.add_samples([sample(0)]) == 0


@pytest.mark.postgres
def test_a_writer_that_hangs_keeps_others_waiting_for_a_while_only(postgres, tmp_path, monkeypatch):
    """Nothing is lost meanwhile: those who waited in vain are told to try again, and it is told that it was stopped."""
    monkeypatch.setenv(project.DATABASE, postgres.url())
    monkeypatch.setattr(database, "_LOCK_S", 0.2)
    monkeypatch.setattr(database, "_IDLE_S", 1.5)
    hangs, said = threading.Event(), []

    def hang(connection: sa.Connection) -> None:
        connection.execute(sa.insert(schema.snapshots).values(id="never", time=""))
        hangs.set()
        time.sleep(3)
        connection.scalar(sa.text("SELECT 1"))

    def write() -> None:
        with pytest.raises(StoreUnavailable) as refused:
            one._database.write(hang)
        said.append(str(refused.value))

    with Store.open(tmp_path / "p", create=True) as one, Store.open(tmp_path / "p") as other:
        thread = threading.Thread(target=write)
        thread.start()
        assert hangs.wait(10)
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            other.add_rater("Ada")
        time.sleep(2)  # by then the one that hangs was stopped by the database
        other.add_rater("Ada")
        thread.join()
        one.add_rater("Ben")
        assert [rater.name for rater in one.raters()] == ["Ada", "Ben"]
        with one._database.read() as connection:
            assert not connection.execute(sa.select(schema.snapshots)).all()
    assert said and "idle-in-transaction" in said[0]
