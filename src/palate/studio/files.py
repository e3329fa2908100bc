"""Media as raters get them: the stored file without what it says about where it came from, in ranges.

Pictures go out as PNG, whatever they were stored as, by the decoder that scorers use: both sides of a pair in one
encoding, none lossy twice. A PNG that holds nothing but its pixels goes out as it lies there. Of videos and sounds the
tags are blanked in place (`scrub`), so that lengths and offsets stay.
"""

from __future__ import annotations

import io
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from palate.media import decode
from palate.records import Medium
from palate.studio.scrub import Patch, patches

CHUNK = 256 * 1024
KEPT_BYTES = 128 * 2**20  # of pictures that had to be encoded anew
PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND"}
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
    """Views of media by their hash; those that took work are kept, the least used dropped first."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        self._kept: OrderedDict[str, View] = OrderedDict()
        self._bytes = 0  # that the kept ones hold
        self._lock = threading.Lock()

    def of(self, sha256: str, path: Path, type: str) -> View:
        """Raises OSError if the file is gone, MediaError if it is no readable picture."""
        with self._lock:
            if (view := self._kept.get(sha256)) is not None:
                self._kept.move_to_end(sha256)
                return view
        view = view_of(path, type)
        with self._lock:
            if (double := self._kept.pop(sha256, None)) is not None:  # two asked for it at once
                self._bytes -= _held(double)
            self._kept[sha256] = view
            self._bytes += _held(view)
            while self._bytes > self.kept_bytes and len(self._kept) > 1:
                self._bytes -= _held(self._kept.popitem(last=False)[1])
        return view


def view_of(path: Path, type: str) -> View:
    size = path.stat().st_size
    if not type.startswith("image/"):
        return View(type, size, path=path, patches=tuple(patches(path, type)))
    if type == "image/png" and only_pixels(path):
        return View(type, size, path=path)
    encoded = io.BytesIO()
    decode(Medium(type, path.read_bytes())).save(encoded, "PNG", compress_level=1)
    return View("image/png", encoded.tell(), data=encoded.getvalue())


def only_pixels(path: Path) -> bool:
    """Whether a PNG is 8-bit RGB or grey without any further chunk: texts, profiles, times or orientation."""
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return False
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind not in PLAIN_CHUNKS:
                return False
            if kind == b"IHDR":
                body = file.read(13)
                if length != 13 or len(body) != 13 or body[8] != 8 or body[9] not in (0, 2):
                    return False
                length = 0
            if kind == b"IEND":
                file.seek(4, io.SEEK_CUR)
                return file.read(1) == b""  # nothing may hang on behind
            file.seek(length + 4, io.SEEK_CUR)
    return False


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
