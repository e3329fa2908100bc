"""Media as raters get them: the stored file without what it says about where it came from, in ranges.

Pictures go out as PNG and sounds as WAV of 16 bits, whatever they were stored as, by the decoder that scorers use and
one encoder: what a rater's browser gets of one depends on what is seen or heard alone, and nothing tells which model,
or whose software, made it. One that is so encoded already, as Palate's own are, goes out as it lies there; others are
encoded once, and kept in a folder. Videos,
which could not be encoded anew without loss, and sounds that are too long for it or that only PyAV could read where it
is not installed, go out as they are, their tags blanked in place (`scrub`), so that lengths and offsets stay.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import re
import secrets
import shutil
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from palate import kinds
from palate.durable import ASIDE
from palate.media import MediaError, decode
from palate.records import Medium
from palate.studio.scrub import Patch, patches

CHUNK = 256 * 1024
LONGEST = 600.0  # seconds of a sound that is encoded anew
RESERVE = 2**30  # bytes of the disk that are left free
KEPT_BYTES = 128 * 2**20  # of media that had to be encoded anew
PIECE = 65536  # bytes of a chunk of pixels as Pillow cuts them, or four a pixel of a row
END = b"\0\0\0\0IEND\xaeB`\x82"
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class NoRange(ValueError):
    """A Range header that cannot be served."""


@dataclass(frozen=True)
class View:
    """What is sent of a medium: bytes at hand, or a file with some places overwritten. size: in bytes."""

    type: str
    size: int
    data: bytes | None = None
    path: Path | None = None
    patches: tuple[Patch, ...] = ()

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes from start to before end."""
        if self.data is not None:
            yield self.data[start:end]
            return
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(start)
            while start < end and (piece := file.read(min(CHUNK, end - start))):
                yield _patched(piece, start, self.patches)
                start += len(piece)


class Views:
    """Views of media by their hash; those that took work are kept, the least used dropped first.

    folder: where media that had to be encoded anew are kept; it may be deleted. None: nowhere.
    """

    def __init__(self, folder: Path | None = None, kept_bytes: int = KEPT_BYTES) -> None:
        self.folder, self.kept_bytes = folder, kept_bytes
        self._kept: OrderedDict[str, View] = OrderedDict()
        self._bytes = 0  # that the kept ones hold
        self._lock = threading.Lock()
        self._making = tuple(threading.Lock() for _ in range(64))  # by hash: what many ask for at once is made once

    def at_hand(self, sha256: str) -> View | None:
        """A view whose bytes are in memory; None for any other, and nothing is read."""
        view = self._found(sha256)
        return view if view is not None and view.data is not None else None

    def of(self, sha256: str, path: Path, type: str) -> View:
        """Raises OSError if the file is gone, MediaError if it is no readable picture."""
        if (view := self._found(sha256)) is not None:
            return view
        with self._makes(sha256):
            if (view := self._found(sha256)) is None:
                view = view_of(path, type, self._file(sha256))
                self._keep(sha256, view)
        return view

    def make_ahead(
        self, media: Iterable[tuple[str, Path, str]], stop: threading.Event, say: Callable[[str], None]
    ) -> None:
        """Encodes anew what has to be, of hash, path and type, in that order, until stopped or there is no room."""
        if self.folder is None:
            return
        _sweep(self.folder)
        begun = False
        for sha256, path, type in media:
            if stop.is_set():
                return
            file = self._file(sha256)
            if file is None or file.exists() or not _is_foreign(path, type):
                continue
            if not _has_room(self.folder):
                say(f"The disk has little room: nothing more is kept in {self.folder}, and pictures come slower.")
                return
            if not begun:
                say("Pictures or sounds of other makes are being encoded ahead; raters can begin.")
                begun = True
            with self._makes(sha256), contextlib.suppress(Exception):  # whoever asks for it is told
                view_of(path, type, file)

    def _found(self, sha256: str) -> View | None:
        with self._lock:
            if (view := self._kept.get(sha256)) is not None:
                self._kept.move_to_end(sha256)
            return view

    def _makes(self, sha256: str) -> threading.Lock:
        return self._making[hash(sha256) % len(self._making)]

    def _file(self, sha256: str) -> Path | None:
        return None if self.folder is None else self.folder / sha256[:2] / sha256

    def _keep(self, sha256: str, view: View) -> None:
        with self._lock:
            self._kept[sha256] = view
            self._bytes += _held(view)
            while self._bytes > self.kept_bytes and len(self._kept) > 1:
                self._bytes -= _held(self._kept.popitem(last=False)[1])


def view_of(path: Path, type: str, kept: Path | None = None) -> View:
    """kept: the file for what had to be encoded anew."""
    if type.startswith("image/"):
        path.stat()  # what is gone is not shown, kept or not
        data = path.read_bytes() if type == "image/png" else b""
        if not as_encoded_here(data):
            data = _once(kept, as_encoded_here, lambda out: decode(Medium(type, path.read_bytes())).save(out, "PNG"))
        return View("image/png", len(data), data=data)
    wav = as_wav(path, type, kept) if type.startswith("audio/") else None
    if wav is not None:
        return View("audio/wav", len(wav), data=wav)
    return View(type, path.stat().st_size, path=path, patches=tuple(patches(path, type)))


def _is_foreign(path: Path, type: str) -> bool:
    """Whether a picture or sound has to be encoded anew, from a few of its bytes."""
    if not type.startswith(("image/", "audio/")):
        return False
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if type == "image/png":
                return not as_encoded_here(data)
            return type != "audio/wav" or not _is_plain_wav(data[:44], len(data))
    except (OSError, ValueError):  # it is gone, or empty
        return False


def _once(file: Path | None, is_whole: Callable[[bytes], bool], encode: Callable[[IO[bytes]], object]) -> bytes:
    """What `encode` writes: from the file, or made now and, where that can be, kept there.

    Written to a file, as it lets other threads work meanwhile.
    """
    if file is not None:
        with contextlib.suppress(OSError):
            if is_whole(data := file.read_bytes()):
                return data
        with contextlib.suppress(OSError):
            if _has_room(file.parent):
                return _kept(file, encode)
    buffer = io.BytesIO()
    encode(buffer)
    return buffer.getvalue()


def _kept(file: Path, encode: Callable[[IO[bytes]], object]) -> bytes:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{ASIDE}{secrets.token_hex(8)}")
    try:
        with aside.open("w+b") as out:
            encode(out)
            out.flush()
            os.fsync(out.fileno())
            out.seek(0)
            data = out.read()
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
    return data


def _has_room(folder: Path) -> bool:
    """Whether the disk has so much left that votes are in no danger of finding it full."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free > RESERVE


def _sweep(folder: Path) -> None:
    """Removes what a crash left, which is older than anything that is being written."""
    for left in folder.glob(f"*/{ASIDE}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()


def as_wav(path: Path, type: str, kept: Path | None = None) -> bytes | None:
    """A sound as Palate writes it; None where it has to go out as it is.

    One that lies so already is read, too: what comes from the disk takes longer than what is at hand, which would tell.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(44)
    if _is_plain_wav(head, size):
        return path.read_bytes() if size - 44 <= LONGEST * int.from_bytes(head[28:32], "little") else None

    def encode(out: IO[bytes]) -> None:
        out.write(kinds.written(kinds.sound(path.read_bytes(), type, LONGEST)).bytes or b"")

    try:
        return _once(kept, lambda data: _is_plain_wav(data[:44], len(data)), encode)
    except MediaError:  # damaged, too long, or PyAV is not there; a browser may know better
        return None


def _is_plain_wav(head: bytes, size: int) -> bool:
    """Whether a file of that many bytes and these first 44 is a WAV of 16 bits and nothing beside."""
    data = struct.pack("<I", size - 44) if len(head) == 44 and size < 2**32 else b""
    return (head[:4], head[8:22], head[34:]) == (b"RIFF", b"WAVEfmt \x10\0\0\0\x01\0", b"\x10\0data" + data)


def as_encoded_here(data: bytes | mmap.mmap) -> bool:
    """Whether a PNG is what encoding its pixels anew would give, as far as its build tells: 8-bit RGB, no further
    chunk (texts, profiles, times, orientation), compressed and cut as Pillow does, nothing behind it."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[8:16] != b"\0\0\0\rIHDR" or data[24:29] != b"\x08\x02\0\0\0":
        return False
    at, pieces = 33, []
    while (head := data[at : at + 8]) and len(head) == 8 and head[4:] == b"IDAT":
        pieces.append(int.from_bytes(head[:4], "big"))
        at += 12 + pieces[-1]
    piece = max(PIECE, 4 * int.from_bytes(data[16:20], "big"))
    cut = all(size == piece for size in pieces[:-1]) and bool(pieces) and pieces[-1] <= piece
    return cut and data[41:43] == b"\x78\x9c" and data[at:] == END


def range_of(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a Range header; None if there is none. Raises NoRange, also for several ranges."""
    if header is None:
        return None
    match = RANGE.fullmatch(header.strip())
    if match is None or match.group(1) == match.group(2) == "":
        raise NoRange
    first, last = match.groups()
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
    if start >= end:
        raise NoRange
    return start, end


def _held(view: View) -> int:
    return 512 + len(view.data or b"") + sum(len(patch.blank) for patch in view.patches)


def _patched(piece: bytes, start: int, changes: tuple[Patch, ...]) -> bytes:
    """The piece of a file that begins at start, with what the patches put over it."""
    end, changed = start + len(piece), None
    for at, blank in changes:
        low, high = max(start, at), min(end, at + len(blank))
        if low < high:
            changed = changed if changed is not None else bytearray(piece)
            changed[low - start : high - start] = blank[low - at : high - at]
    return piece if changed is None else bytes(changed)
