"""Tags of video and sound files, blanked in place: titles, comments, encoders, whatever says how a file was made.

Each container marks such parts as skippable with a word that players know (MP4 `free`, RIFF `JUNK`, FLAC padding, EBML
Void), so that lengths, offsets and seeking stay. What cannot be parsed is left as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

MOST = 16 * 2**20  # bytes of one tag that are blanked; longer ones are cut there
MP4_TAGS = {b"udta", b"meta", b"uuid", b"free", b"skip"}
MP4_PARENTS = {b"moov", b"trak", b"mdia", b"minf"}
RIFF_KEPT = {b"fmt ", b"data", b"fact"}
FLAC_KEPT = {0, 3}  # stream info, seek table
EBML_SEGMENT, EBML_TAGS = 0x18538067, {0x1254C367, 0x1941A469}  # Tags, Attachments


class Patch(NamedTuple):
    """Bytes that stand at an offset instead of the file's own."""

    at: int
    blank: bytes


def patches(path: Path, type: str) -> Iterator[Patch]:
    """What to overwrite in a file of this media type; nothing for types that hold no tags."""
    scrubber = SCRUBBERS.get(type)
    if scrubber is not None:
        size = path.stat().st_size
        with path.open("rb") as file:
            try:
                yield from scrubber(file, size)
            except (struct.error, IndexError):  # cut short
                return


def _at(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _mp4(file: BinaryIO, size: int, start: int = 0, depth: int = 0) -> Iterator[Patch]:
    at = start
    while at + 8 <= size:
        length, kind = struct.unpack(">I4s", _at(file, at, 8))
        header = 8
        if length == 1:
            (length,), header = struct.unpack(">Q", _at(file, at + 8, 8)), 16
        elif length == 0:
            length = size - at
        if length < header or at + length > size:
            return
        if kind in MP4_TAGS:
            yield Patch(at + 4, b"free")
            yield Patch(at + header, bytes(min(length - header, MOST)))
        elif kind in MP4_PARENTS and depth < 4:
            yield from _mp4(file, at + length, at + header, depth + 1)
        at += length


def _wav(file: BinaryIO, size: int) -> Iterator[Patch]:
    at = 12
    while at + 8 <= size:
        kind, length = struct.unpack("<4sI", _at(file, at, 8))
        if kind not in RIFF_KEPT:
            yield Patch(at, b"JUNK")
            yield Patch(at + 8, bytes(min(length, size - at - 8, MOST)))
        at += 8 + length + length % 2


def _flac(file: BinaryIO, size: int) -> Iterator[Patch]:
    at, last = 4, False
    while not last and at + 4 <= size:
        head = _at(file, at, 4)
        last, kind, length = bool(head[0] & 0x80), head[0] & 0x7F, int.from_bytes(head[1:], "big")
        if kind not in FLAC_KEPT:
            yield Patch(at, bytes([(0x80 if last else 0) | 1]))
            yield Patch(at + 4, bytes(min(length, size - at - 4)))
        at += 4 + length


def _mp3(file: BinaryIO, size: int) -> Iterator[Patch]:
    head = _at(file, 0, 10)
    if head[:3] == b"ID3" and len(head) == 10:
        length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        yield Patch(10, bytes(min(length, size - 10)))
    if size >= 128 and _at(file, size - 128, 3) == b"TAG":
        yield Patch(size - 125, bytes(125))


def _webm(file: BinaryIO, size: int) -> Iterator[Patch]:
    at = 0
    while at < size:
        kind, width = _ebml(_at(file, at, 8), marked=True)
        length, more = _ebml(_at(file, at + width, 8), marked=False)
        header = width + more
        if kind == EBML_SEGMENT:
            at += header
            continue
        if length == (1 << 7 * more) - 1:  # a live cluster: where it ends is not said
            return
        whole = min(header + length, size - at)
        if kind in EBML_TAGS and whole >= 9:
            yield Patch(at, b"\xec\x01" + (whole - 9).to_bytes(7, "big") + bytes(min(whole - 9, MOST)))
        at += header + length


def _ebml(data: bytes, marked: bool) -> tuple[int, int]:
    """A variable-length number and its width; marked: with the bit that says the width, as ids are written."""
    if not data or data[0] == 0:
        raise IndexError
    width = 9 - data[0].bit_length()
    value = int.from_bytes(data[:width], "big")
    return (value if marked else value & ((1 << 7 * width) - 1)), width


SCRUBBERS: dict[str, Callable[[BinaryIO, int], Iterator[Patch]]] = {
    "video/mp4": _mp4,
    "audio/wav": _wav,
    "audio/flac": _flac,
    "audio/mpeg": _mp3,
    "video/webm": _webm,
    "audio/webm": _webm,
}
