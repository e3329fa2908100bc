"""Videos as WebM files of VP8 key frames, written and read without any encoder of video: Pillow's WebP is one.

A lossy WebP picture is a VP8 key frame in another wrapping (RFC 6386; RFC 9649, section 2.5), so that a video whose
frames are all key frames is its frames as WebP, wrapped as Matroska (RFC 9559). Browsers play it and seek to any frame;
it is larger than one that predicts frames from frames. The reader takes such files alone: of untrusted data, nothing
but the WebP decoder sees any pixels.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence

from PIL import Image, features

from palate.media import MAX_PIXELS, MediaError, decode
from palate.records import Medium

MAX_FRAMES = 1024
MAX_PIXELS_IN_ALL = 4 * MAX_PIXELS
MAX_RATE = 1000.0  # frames a second: Matroska's times here are milliseconds
QUALITY = 95  # of WebP; the colours are kept at half the resolution, whatever the quality
OTHER = "other video"  # kind of the error for a video that something else wrote
_CLUSTER_S = 1.0  # a block's time counts from its cluster's, in 16 bits of milliseconds
_EBML, _SEGMENT, _INFO, _TRACKS, _CUES, _CLUSTER = (
    0x1A45DFA3,
    0x18538067,
    0x1549A966,
    0x1654AE6B,
    0x1C53BB6B,
    0x1F43B675,
)
_TRACK, _BLOCK, _GROUP, _IN_GROUP, _DURATION, _CODEC, _TIME = 0xAE, 0xA3, 0xA0, 0xA1, 0x23E383, 0x86, 0xE7
_NESTED = {_SEGMENT, _CLUSTER, _TRACKS, _TRACK, _GROUP}


# --- out --------------------------------------------------------------------------------------------------------------


def write(frames: Sequence[Image.Image], rate: float, quality: int = QUALITY) -> bytes:
    """A video of frames of one size, `rate` of them a second.

    Raises MediaError for no frame or more than MAX_FRAMES, frames of several sizes, and rates that are none.
    """
    sizes = {frame.size for frame in frames}
    if not 0 < len(frames) <= MAX_FRAMES or len(sizes) > 1:
        raise MediaError(f"a video is 1 to {MAX_FRAMES} frames of one size; these are {len(frames)} of {sorted(sizes)}")
    if not 0 < rate <= MAX_RATE:
        raise MediaError(f"a video at {rate!r} frames a second cannot be written: above 0 up to {MAX_RATE:g} can")
    if not features.check("webp"):
        raise MediaError("videos are written by Pillow's WebP, which this one lacks: pip install --upgrade pillow")
    (size,) = sizes
    times = [round(1000 * place / rate) for place in range(len(frames))]
    clusters, starts = _clusters([_key_frame(frame, quality) for frame in frames], times)
    info = _element(
        _INFO,
        _element(0x2AD7B1, _integer(1_000_000)),  # nanoseconds in a tick of its times
        _element(0x4489, struct.pack(">d", 1000 * len(frames) / rate)),
        _element(0x4D80, b"palate"),
        _element(0x5741, b"palate"),
    )
    tracks = _element(_TRACKS, _track(size, rate))
    before = len(info) + len(tracks)
    cues = _cues(starts, [0] * len(starts))  # as long as it will be: positions are of fixed length
    places, at = [], before + len(cues)
    for cluster in clusters:
        places.append(at)
        at += len(cluster)
    segment = _element(_SEGMENT, info, tracks, _cues(starts, places), *clusters)
    head = [(0x4286, 1), (0x42F7, 1), (0x42F2, 4), (0x42F3, 8), (0x4287, 4), (0x4285, 2)]
    kind = _element(0x4282, b"webm")
    return _element(_EBML, *(_element(name, _integer(value)) for name, value in head), kind) + segment


def _clusters(parts: Sequence[bytes], times: Sequence[int]) -> tuple[list[bytes], list[int]]:
    """Frames in groups of a second, each of which can be begun with; and when they begin."""
    groups: dict[int, list[int]] = {}
    for place, time in enumerate(times):
        groups.setdefault(int(time / 1000 / _CLUSTER_S), []).append(place)
    made, starts = [], []
    for group in groups.values():
        starts.append(start := times[group[0]])
        # track 1, time, and the flag of a key frame
        blocks = (_element(_BLOCK, struct.pack(">BhB", 0x81, times[p] - start, 0x80), parts[p]) for p in group)
        made.append(_element(_CLUSTER, _element(_TIME, _integer(start)), *blocks))
    return made, starts


def _cues(starts: Sequence[int], places: Sequence[int]) -> bytes:
    points = (
        _element(
            0xBB,
            _element(0xB3, struct.pack(">Q", start)),
            _element(0xB7, _element(0xF7, _integer(1)), _element(0xF1, struct.pack(">Q", place))),
        )
        for start, place in zip(starts, places, strict=True)
    )
    return _element(_CUES, *points)


def _track(size: tuple[int, int], rate: float) -> bytes:
    # WebP's colours: BT.601's matrix in the narrow range, sRGB's curve and primaries; a player would guess them by size
    colour = _element(
        0x55B0, *(_element(name, _integer(n)) for name, n in ((0x55B1, 6), (0x55B9, 1), (0x55BA, 13), (0x55BB, 1)))
    )
    video = _element(0xE0, _element(0xB0, _integer(size[0])), _element(0xBA, _integer(size[1])), colour)
    facts = [(0xD7, 1), (0x73C5, 1), (0x83, 1), (0x9C, 0), (_DURATION, round(1e9 / rate))]
    return _element(_TRACK, *(_element(name, _integer(n)) for name, n in facts), _element(_CODEC, b"V_VP8"), video)


def _key_frame(frame: Image.Image, quality: int) -> bytes:
    """A picture as VP8's bitstream: the one chunk of a WebP file that holds it."""
    buffer = io.BytesIO()
    plain = frame.convert("RGB") if frame.mode != "RGB" else frame.copy()
    plain.info = {}  # no profile or text may come along
    plain.save(buffer, "WEBP", quality=quality)
    content, at = buffer.getvalue(), 12
    while content[at : at + 4] != b"VP8 ":
        at += 8 + int.from_bytes(content[at + 4 : at + 8], "little")
    return content[at + 8 : at + 8 + int.from_bytes(content[at + 4 : at + 8], "little")]


def _element(name: int, *parts: bytes) -> bytes:
    """An element of Matroska; names hold their own length."""
    content = b"".join(parts)
    size = len(content)
    length = next(n for n in range(1, 9) if size < (1 << 7 * n) - 1)
    return name.to_bytes(-(-name.bit_length() // 8), "big") + (size | 1 << 7 * length).to_bytes(length, "big") + content


def _integer(value: int) -> bytes:
    return value.to_bytes(max(1, -(-value.bit_length() // 8)), "big")


# --- in ---------------------------------------------------------------------------------------------------------------


def read(content: bytes) -> tuple[list[Image.Image], float]:
    """The frames, and how many a second.

    Raises MediaError for any other video, for damage, and for too many frames or pixels.
    """
    parts, rate = _parts(content)
    frames: list[Image.Image] = []
    for part in parts:
        frames.append(decode(Medium("image/webp", _as_webp(part))))
        if sum(frame.width * frame.height for frame in frames) > MAX_PIXELS_IN_ALL:
            raise MediaError(f"a video has more than {MAX_PIXELS_IN_ALL:,} pixels in all", "too many pixels")
    return frames, rate


def measure(content: bytes) -> tuple[tuple[int, int], int, float]:
    """Width and height, frames, and how many a second; no frame is decoded. Raises MediaError as `read` does."""
    parts, rate = _parts(content)
    width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", parts[0], 6))
    return (width, height), len(parts), rate


def _parts(content: bytes) -> tuple[list[bytes], float]:
    """The frames as VP8's bitstreams, and how many a second."""
    parts: list[bytes] = []
    codec, duration, cluster, times = b"", 0, 0, list[int]()
    try:
        for name, value in _elements(content):
            if name == _CODEC:
                codec = bytes(value)
            elif name == _DURATION:
                duration = int.from_bytes(value, "big")
            elif name == _TIME:
                cluster = int.from_bytes(value, "big")
            elif name in (_BLOCK, _IN_GROUP):
                times.append(cluster + struct.unpack_from(">h", value, _number(value, 0)[1])[0])
                parts.append(_frame_of(value))
                if len(parts) > MAX_FRAMES:
                    raise MediaError(f"a video has more than {MAX_FRAMES} frames", "too many frames")
    except (IndexError, struct.error):
        raise MediaError("a video that is damaged, or cut short", "damaged") from None
    if codec != b"V_VP8" or not parts:
        raise MediaError("a video of another make than VP8 key frames", OTHER)
    span = max(times) - min(times)
    rate = 1e9 / duration if duration else 1000 * (len(parts) - 1) / span if span else 1.0
    return parts, float(round(rate)) if abs(rate - round(rate)) < 1e-3 else rate


def _elements(content: bytes) -> Iterator[tuple[int, memoryview]]:
    """Names and contents in order; those in which others nest are opened, their own lengths not relied on."""
    data, at = memoryview(content), 0
    while at < len(data):
        name, at = _number(data, at, keep=True)
        size, at = _number(data, at)
        if name in _NESTED:
            continue
        if at + size > len(data):
            raise IndexError
        yield name, data[at : at + size]
        at += size


def _number(data: memoryview, at: int, keep: bool = False) -> tuple[int, int]:
    """A number that says how long it is, and where it ends. keep: with the bit that says so, as names have it."""
    first = data[at]
    length = 9 - first.bit_length()
    if length > 8 or at + length > len(data):
        raise IndexError
    value = int.from_bytes(data[at : at + length], "big")
    return value if keep else value & ((1 << 7 * length) - 1), at + length


def _frame_of(block: memoryview) -> bytes:
    """The frame of a block. Raises MediaError for one that is predicted from others, or for several in one block."""
    _, at = _number(block, 0)
    laced, frame = block[at + 2] & 0x06, bytes(block[at + 3 :])
    if laced or len(frame) < 10 or frame[0] & 1 or frame[3:6] != b"\x9d\x01\x2a":
        raise MediaError("a video of another make than VP8 key frames", OTHER)
    return frame


def _as_webp(frame: bytes) -> bytes:
    chunk = b"VP8 " + struct.pack("<I", len(frame)) + frame + b"\0" * (len(frame) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
