"""Tensors kept on disk by the digest of what they were made of, so that no run makes them twice.

    cache = TensorCache("~/.cache/palate", budget=100 * 2**30)
    if not cache.holds(key):
        cache.put(key, {"x0": latent})
    latent = cache.get(key)["x0"]

One safetensors file an entry, written aside and renamed: it is there whole or not at all, for any number of processes
at once. Each carries a digest of its content: what a crash or a disk has damaged is not held, and is made again. Files
are not synced one by one, which would cost more than many are worth: after a loss of power some may be missing.

What is made in the folder may be read and written by whoever may read and write the folder: `chmod g+rwxs` shares it
with a group. An entry that only its owner may write is not removed by others, who cannot mark it as used either.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from palate.durable import StorageError, explained
from palate.models.embeds import Memo
from palate.models.identity import digest_of

try:
    import fcntl
except ImportError:  # Windows has no POSIX locks: nothing is evicted there
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".safetensors"
OPEN, EVICTING = "cache.lock", "evict.lock"  # held by each run that has the cache open; by one that evicts
PRIVATE = ".part"  # ends the name of a file that is not whole yet
_MEMORY = 2**28  # bytes of entries kept in main memory
_STALE_S = 24 * 3600.0  # age of a private file that nobody is writing any more


class CacheError(RuntimeError):
    """An entry that is needed is not there; the message says what to do."""


def default_folder() -> Path:
    """`$PALATE_CACHE`, else `palate` in the user's cache folder: shared by all runs of a user."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("PALATE_CACHE") or Path(home) / "palate")


class TensorCache:
    """Entries `{name: tensor}` with JSON facts, by key. While it is open, no other run evicts anything from it."""

    def __init__(
        self, folder: str | Path, budget: float = 100 * 2**30, memory: int = _MEMORY, *, guard: bool = True
    ) -> None:
        """budget: bytes on disk to stay under by evicting what was not used the longest. memory: bytes kept in memory.
        guard: False in all processes of a run but the first, which has opened it before and closes it after them; they
        evict nothing, and are not in its way when it does.

        Raises StorageError, one line, for a folder that cannot be written.
        """
        self.folder, self.budget = Path(folder).expanduser(), budget
        self._memo, self._opened = Memo(memory), time.time()
        self._lock: IO[bytes] | None = None
        with self._storing():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._mode = self.folder.stat().st_mode & 0o7777
            if guard:
                self._lock = self._opened_lock(OPEN)
                self._opened = _touched(self._lock) or self._opened
                if not _locked(self._lock, shared=True, wait=True):
                    self._lock.close()
                    self._lock = None

    def __enter__(self) -> TensorCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other runs evict."""
        if self._lock is not None:
            self._lock.close()

    def holds(self, key: str) -> bool:
        """Whether there is such an entry, whole; if so it counts as used now. A damaged one is removed."""
        return self.facts(key) is not None

    def facts(self, key: str) -> dict[str, Any] | None:
        """The facts of an entry that `holds`, None if it does not."""
        path = self._path(key)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError:
            pass  # another user's, who does not share it
        if (found := self._read(key)) is not None:
            return found[1]
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def stands(self, key: str) -> bool:
        """Whether there is an entry of its full length; if so it counts as used now. Reads no more than its header:
        content that is damaged is found, and removed, when it is read."""
        path = self._path(key)
        try:
            with contextlib.suppress(PermissionError):
                os.utime(path)
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if not 0 < length <= size - 8:
                    return False
                header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return size == 8 + length + max(ends, default=0)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def get(self, key: str) -> dict[str, Tensor]:
        """The entry's tensors, on the CPU. Raises CacheError if it is not there any more, or damaged."""
        return self.entry(key)[0]

    def entry(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The entry's tensors and facts."""
        made: tuple[dict[str, Tensor], dict[str, Any]] = self._memo.get(key, lambda: self._needed(key), _size)
        return made

    def _needed(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        found = self._read(key)
        if found is None:
            with contextlib.suppress(OSError):  # so that the next start does not rely on it
                self._path(key).unlink()
            raise CacheError(
                f"{self._path(key)} is gone or damaged: run the same command again, and what it held is encoded anew"
            )
        return found

    def put(self, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> int:
        """Stores an entry and returns its bytes on disk. Raises StorageError, one line, for a full disk."""
        path = self._path(key)
        kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        said = json.dumps(dict(facts or {}))
        aside = path.with_name(f"{path.stem}-{uuid.uuid4().hex}{PRIVATE}")  # process ids are not unique in containers
        with self._storing():
            if not path.parent.is_dir():
                path.parent.mkdir(exist_ok=True)
                self._share(path.parent)
            try:
                save_file(kept, aside, metadata={"facts": said, "digest": digest_of(kept, said)})
                size = aside.stat().st_size
                self._share(aside)
                aside.replace(path)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise
        return size

    def size(self, key: str) -> int:
        """Bytes of an entry on disk, 0 if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return self._path(key).stat().st_size
        return 0

    def used(self) -> int:
        """Bytes of all entries."""
        return sum(size for _, size, _ in self._entries())

    def evict(self, room: int = 0) -> int:
        """Removes what was not used the longest until `room` more bytes fit the budget. Returns the bytes removed.

        Never what this run has used or made, nor what belongs to another user alone. While other runs have the cache
        open nothing is removed.
        """
        if self._lock is None:
            return 0
        try:
            turns = self._opened_lock(EVICTING)
        except OSError:  # a folder that this user may not write
            return 0
        with turns as turn:
            # A lock is let go before it is exchanged for a stricter one. Nobody gets the stricter one meanwhile, since
            # that takes this turn; and it is given back before the turn is.
            if not _locked(turn, shared=False, wait=False):
                return 0
            try:
                return self._evict(room) if _locked(self._lock, shared=False, wait=False) else 0
            finally:
                _locked(self._lock, shared=True, wait=True)

    def _evict(self, room: int) -> int:
        entries = sorted(self._entries())
        over, removed = sum(size for _, size, _ in entries) + room - self.budget, 0
        for used_at, size, path in entries:
            if removed >= over or used_at >= self._opened - 1:  # a second: some disks keep no finer time
                break
            if os.access(path, os.W_OK):
                with contextlib.suppress(OSError):
                    path.unlink()
                    removed += size
        return removed

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """When each entry was last used, its bytes, its file. Clears away what a killed run left half written."""
        for folder in _listed(self.folder):
            if not folder.is_dir():
                continue
            for file in _listed(folder.path):
                with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                    facts = file.stat()
                    if file.name.endswith(PRIVATE):
                        if facts.st_mtime < time.time() - _STALE_S:
                            Path(file.path).unlink()
                    elif file.name.endswith(SUFFIX):
                        yield facts.st_mtime, facts.st_size, Path(file.path)

    def _opened_lock(self, name: str) -> IO[bytes]:
        """A file to hold a lock on. Locking it takes no right to write it, which its maker may not have given."""
        path = self.folder / name
        try:
            file: IO[bytes] = path.open("ab")
        except PermissionError:
            if not path.exists():
                raise
            return path.open("rb")
        self._share(path)
        return file

    def _share(self, path: Path) -> None:
        """Lets those read and write a file or folder who may do so with the cache's folder."""
        wanted = self._mode if path.is_dir() else self._mode & 0o666
        if path.stat().st_mode & 0o7777 != wanted:
            with contextlib.suppress(PermissionError):
                path.chmod(wanted)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def _read(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """An entry, None if it is not there or not what was written."""
        try:
            with safe_open(self._path(key), "pt") as file:
                meta = file.metadata() or {}
                names: list[str] = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
            if digest_of(tensors, meta["facts"]) != meta["digest"]:
                return None
            facts: dict[str, Any] = json.loads(meta["facts"])
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        return tensors, facts

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise StorageError(explained(error, self.folder, 0) or str(error)) from error


def _listed(folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds; nothing where another user shows it to nobody."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _touched(file: IO[bytes]) -> float | None:
    """The time now by the clock of the disk, which stamps entries as used; another machine's may differ from ours."""
    try:
        os.utime(file.fileno())
        return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


def _locked(file: IO[bytes], *, shared: bool, wait: bool) -> bool:
    """Whether the file's lock, shared or alone, is now held; not where the disk, or the system, has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        return True
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
            return False  # EBADF: some disks lock for one alone only what is open for writing
        raise


def _size(found: tuple[dict[str, Tensor], dict[str, Any]]) -> int:
    return sum(tensor.nbytes for tensor in found[0].values())


def narrowed(tensor: Tensor) -> Tensor:
    """The same numbers in half the bytes where none of them loses anything; to be widened again by whoever reads it."""
    for dtype in (torch.bfloat16, torch.float16):
        narrow = tensor.to(dtype)
        if tensor.dtype == torch.float32 and torch.equal(narrow.to(tensor.dtype), tensor):
            return narrow
    return tensor
