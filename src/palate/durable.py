"""Folders and files that exist whole or not at all, and one process at a time in a run's folder.

A folder is written aside as `palate-tmp-*`, every file and the folder itself are fsynced, then it is renamed to its
final name and the parent is fsynced. What a crash leaves behind is such a folder, which the next run removes; a run's
folder may be the user's own, and nothing else in it is touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no POSIX locks: the folder is then not guarded
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
ASIDE = "palate-tmp-"  # begins the name of every folder that is not whole yet, or about to go


class StorageError(OSError):
    """A folder cannot be written or is in use; the message is one line and names it."""

    def __str__(self) -> str:
        return str(self.args[0])


def fsync(path: Path) -> None:
    """Asks the disk to keep a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def written_aside(final: Path, *, needs: int = 0) -> Iterator[Path]:
    """A new folder to write in, which becomes `final` when the block ends well and vanishes when it does not.

    A folder of that name that is there already stays until the new one is durable on disk. needs: bytes about to be
    written, refused beforehand if they do not fit. Raises StorageError, one line, for a full or forbidden disk.
    """
    aside = final.parent / f"{ASIDE}{final.name}-{os.getpid()}"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        require_space(final.parent, needs)
        aside.mkdir()
        yield aside
        for path in sorted(aside.rglob("*")):
            if path.is_file():  # safetensors makes files that their owner alone may read, whatever the umask says
                path.chmod(path.stat().st_mode | aside.stat().st_mode & 0o666)
            fsync(path)
        fsync(aside)
        replace_folder(aside, final)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if (said := explained(error, final, needs)) is not None:
            raise StorageError(said) from error
        raise


def replace_folder(new: Path, final: Path) -> None:
    """Renames `new` to `final`, durably; a folder that had the name is moved out of the way and then removed."""
    old = final.parent / f"{ASIDE}replaced-{final.name}"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    fsync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder so that no half of it is ever seen under its name."""
    doomed = path.parent / f"{ASIDE}removed-{path.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Removes what a crash left behind. Only for the process that holds the run's lock."""
    for path in parent.glob(f"{ASIDE}*"):
        shutil.rmtree(path, ignore_errors=True)


def require_space(folder: Path, needs: int) -> None:
    """Raises StorageError if the disk of a folder has fewer bytes free than are needed."""
    free = shutil.disk_usage(folder).free
    if needs > free:
        raise StorageError(f"disk full: {folder} needs {needs:,} bytes and has {free:,} free; make room and run again")


def explained(error: BaseException, final: Path, needs: int) -> str | None:
    """One line for an error of the disk; None for any other. safetensors reports them as text, without a number."""
    if isinstance(error, StorageError):
        return None
    text, number = str(error), getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "os error 28" in text:
        with contextlib.suppress(OSError):
            text = f"{needs:,} bytes needed, {shutil.disk_usage(final.parent).free:,} free"
        return f"disk full: {final} could not be written ({text}); make room and run again"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or "Permission denied" in text:
        return f"no permission to write {final}; choose another folder or change its owner"
    return f"{final} could not be written: {text}" if isinstance(error, OSError) else None


def write_bytes(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all, and is on disk when this returns. Raises StorageError, one line."""
    aside = path.parent / f"{ASIDE}{secrets.token_hex(8)}"
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        fsync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        if (said := explained(error, path, len(content))) is not None:
            raise StorageError(said) from error
        raise


def make_folder(path: Path) -> None:
    """A folder, and those above it, that are on disk when this returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync(folder.parent)


@contextlib.contextmanager
def locked(folder: Path, holder: str = "run") -> Iterator[None]:
    """Holds the folder for this process. Raises StorageError if a live process has it; a dead one's lock is void.

    holder: what such a process is, in words.
    """
    path = folder / LOCK
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file, and a folder is wanted: choose another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock: IO[str] = path.open("a+")
    except OSError as error:
        raise StorageError(explained(error, folder, 0) or str(error)) from error
    with lock:
        _take(lock, folder, holder)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def check_free(folder: Path, holder: str = "run") -> None:
    """Raises StorageError if a live process holds the folder; makes nothing."""
    with contextlib.suppress(FileNotFoundError, PermissionError), (folder / LOCK).open("r+") as lock:
        _take(lock, folder, holder)


def _take(lock: IO[str], folder: Path, holder: str) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        process = (folder / LOCK).read_text().strip() or "unknown"
        raise StorageError(
            f"{folder} is in use by another {holder} (process {process}); wait for it or choose another folder"
        ) from None


@contextlib.contextmanager
def unmade(folder: Path, *, unless_more_than: Collection[str]) -> Iterator[None]:
    """If the block fails, a folder that was not there before it, and those above it, go again.

    unless_more_than: names of files that are no reason to keep it.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if folder in missing and {path.name for path in folder.iterdir()} <= set(unless_more_than):
                shutil.rmtree(folder)
                for path in missing[1:]:
                    path.rmdir()
        raise
