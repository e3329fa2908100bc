"""Media as JSON holds them, both ways, for the protocol of `docs/http_scorers.md`. No torch, nothing pickled.

    {"type": "image/png", "data": "<base64>"}               a picture; lossless, so that what is judged is what was made
    {"type": "video/png", "frames": ["<base64>", ...]}      a video: its frames, each a PNG; "rate", frames a second,
                                                            where that is known
    {"type": "audio/wav", "data": "<base64>"}               a waveform [C, L], 32-bit floats, at its rate in Hz; if
                                                            that is not known 48,000, and "rate_known": false
    {"type": "text/plain", "text": "..."}                   a text

What comes in is decoded by `palate.media`, whose caps on bytes and pixels hold. Fingerprints, by which a scorer is
known again, are made and compared here, too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from palate import media
from palate.media import MediaError
from palate.records import Medium

MAX_FRAMES = 1024
MAX_CHANNELS = 32
MAX_PIXELS_AT_ONCE = 4 * media.MAX_PIXELS  # of all media of a request, and of one video: a PNG of nothing is small
MAX_RATE = 2**20  # Hz
FRAME_RATE = 16.0  # frames a second of videos that do not say
_RATE = 48_000  # written where a waveform does not say its own
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
GOLDEN = 4  # pictures whose scores a fingerprint holds
SAME = 5e-3  # of a dimension's greatest golden score: how far the scores of one scorer may lie apart
_SCORED = re.compile(r"([0-9a-f]{16})~([A-Za-z0-9_-]+)")


class WireError(ValueError):
    """A medium that cannot be sent, or one received that cannot be read; one line."""


# --- out --------------------------------------------------------------------------------------------------------------


def encode(medium: Any) -> dict[str, Any]:
    """A medium as JSON: a picture, a list of them or an array [F, H, W, 3] in 0 to 1, a text, a waveform [C, L] or [L],
    with its rate in Hz as (waveform, rate) or in its attribute `rate`.

    Raises WireError for anything else, for pictures of more than `media.MAX_PIXELS`, and for rates that are none.
    """
    if isinstance(medium, str):
        return {"type": "text/plain", "text": medium}
    if isinstance(medium, Image.Image):
        return {"type": "image/png", "data": _base64(png(medium))}
    if isinstance(medium, Sequence) and medium and all(isinstance(frame, Image.Image) for frame in medium):
        rate = getattr(medium, "rate", None)
        frames = [_base64(png(frame)) for frame in medium]
        return {"type": "video/png", "frames": frames} | ({"rate": rate} if rate else {})
    wave, rate = medium if isinstance(medium, tuple) and len(medium) == 2 else (medium, getattr(medium, "rate", 0))
    array = _array(wave)
    if array is not None and array.ndim in (1, 2):
        return _sound(array, rate, said=wave is not medium)
    if array is not None and wave is medium and array.ndim == 4 and array.shape[-1] == 3:
        return encode([Image.fromarray(frame) for frame in (array.clip(0, 1) * 255).round().astype(np.uint8)])
    raise WireError(f"a {type(medium).__name__} cannot be sent: pictures, videos, waveforms and texts can")


def _sound(wave: NDArray[np.float32], rate: Any, said: bool) -> dict[str, Any]:
    """said: the rate came with the waveform, and 0 is no rate."""
    if not isinstance(rate, int | np.integer) or not said <= rate <= MAX_RATE:
        raise WireError(f"a sound at {rate!r:.40} Hz cannot be sent: its rate is a whole number, 1 to {MAX_RATE:,}")
    if wave.ndim == 2 and len(wave) > MAX_CHANNELS:
        raise WireError(f"a sound of {len(wave)} channels cannot be sent, {MAX_CHANNELS} can: is it [C, L]?")
    entry = {"type": "audio/wav", "data": _base64(wav(wave, int(rate) or _RATE))}
    return entry if rate else entry | {"rate_known": False}


def pixels(medium: Any) -> int:
    """How many pixels a picture or a video has; 0 of anything else."""
    if isinstance(medium, Image.Image):
        return medium.width * medium.height
    if isinstance(medium, list | tuple):
        return sum(pixels(frame) for frame in medium)
    return int(np.prod(medium.shape[:3])) if getattr(medium, "ndim", 0) == 4 else 0


def _array(medium: Any) -> NDArray[np.float32] | None:
    if hasattr(medium, "detach"):  # a tensor, known without importing torch
        medium = medium.detach().cpu().float().numpy()
    return np.asarray(medium, np.float32) if isinstance(medium, np.ndarray) else None


def png(picture: Image.Image) -> bytes:
    if picture.width * picture.height > media.MAX_PIXELS:
        raise WireError(f"a picture of {picture.width} x {picture.height} has more than {media.MAX_PIXELS} pixels")
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def wav(waveform: NDArray[np.float32], rate: int) -> bytes:
    """A waveform [C, L] or [L] as a WAV file of 32-bit floats."""
    samples = np.atleast_2d(waveform).T.astype("<f4")
    channels, content = samples.shape[1], samples.tobytes()
    head = struct.pack("<HHIIHH", _FLOAT, channels, rate, rate * channels * 4, channels * 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


# --- in ---------------------------------------------------------------------------------------------------------------


def decode(entry: Any) -> Any:
    """What `encode` was given: a picture, a `Video`, a `Waveform` [C, L], a text. Raises WireError."""
    kind = entry.get("type") if isinstance(entry, Mapping) else None
    if kind == "text/plain":
        if not isinstance(entry.get("text"), str):
            raise WireError("a medium of type text/plain needs its `text`")
        return entry["text"]
    if kind in ("image/png", "image/jpeg", "image/webp"):
        return _picture(kind, entry.get("data"))
    if kind == "video/png":
        frames = entry.get("frames")
        if not isinstance(frames, list) or not 0 < len(frames) <= MAX_FRAMES:
            raise WireError(f"a medium of type video/png needs `frames`, 1 to {MAX_FRAMES} of them")
        return Video(_frames(frames), _frame_rate(entry.get("rate", FRAME_RATE)))
    if kind == "audio/wav":
        wave = unwav(_bytes(entry.get("data")))
        if entry.get("rate_known") is False:
            wave.rate = 0
        return wave
    raise WireError(f"a medium of type {kind!r} is not read: image/png, video/png, audio/wav or text/plain are")


def _frame_rate(rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise WireError(f"a video at {rate!r:.40} frames a second is not read: its rate is a number above 0")
    return float(rate)


def _frames(frames: Sequence[Any]) -> list[Image.Image]:
    made: list[Image.Image] = []
    for frame in frames:
        made.append(_picture("image/png", frame))
        if pixels(made) > MAX_PIXELS_AT_ONCE:
            raise WireError(f"a video has more than {MAX_PIXELS_AT_ONCE:,} pixels in all")
    return made


def _picture(kind: str, data: Any) -> Image.Image:
    try:
        return media.decode(Medium(kind, _bytes(data)))
    except MediaError as error:
        raise WireError(str(error)) from None


def _bytes(data: Any) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise WireError("a medium's data are no base64") from None


class Video(list[Image.Image]):
    """The frames of a video, and how many there are a second."""

    def __init__(self, frames: Iterable[Image.Image], rate: float = FRAME_RATE) -> None:
        super().__init__(frames)
        self.rate = rate


class Waveform(np.ndarray[Any, Any]):
    """A waveform [C, L] that knows its rate in Hz, as do its slices and copies; 0 if nobody said it."""

    rate: int = 0

    def __array_finalize__(self, made_of: Any) -> None:
        self.rate = getattr(made_of, "rate", 0)


def unwav(content: bytes) -> Waveform:
    """The waveform [C, L] of a WAV file of 16-bit integers or 32-bit floats, in -1 to 1. Raises WireError."""
    try:
        return _unwav(content)
    except (struct.error, ValueError, KeyError):
        raise WireError("not a WAV file of 16-bit integers or 32-bit floats") from None


def _unwav(content: bytes) -> Waveform:
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError
    chunks: dict[bytes, bytes] = {}
    place = 12
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        chunks.setdefault(name, content[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
    kind = struct.unpack_from("<H", chunks[b"fmt "], 24)[0] if kind == _EXTENSIBLE else kind
    if (kind, bits) not in ((_PCM, 16), (_FLOAT, 32)) or not 0 < channels <= MAX_CHANNELS or rate == 0:
        raise ValueError
    numbers = np.frombuffer(chunks[b"data"], "<i2" if kind == _PCM else "<f4").astype(np.float32)
    if len(numbers) == 0 or len(numbers) % channels or not np.isfinite(numbers).all():
        raise ValueError
    wave = (numbers / 32768 if kind == _PCM else numbers).reshape(-1, channels).T.copy().view(Waveform)
    wave.rate = rate
    return wave


# --- who judges -------------------------------------------------------------------------------------------------------


def fingerprint(facts: Mapping[str, Any], golden: NDArray[np.float64] | None = None) -> str:
    """A text by which a scorer is known again: a digest of facts, and behind a ~ its scores [D, GOLDEN] of the golden
    pictures. These stand there themselves, and in no digest: the last bit of a score changes all of a digest."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    if golden is None:
        return digest
    with np.errstate(over="ignore"):
        scores = golden.astype("<f4").tobytes()
    return f"{digest}~{base64.urlsafe_b64encode(scores).decode().rstrip('=')}"


def same_scorer(a: str, b: str) -> bool:
    """Whether two fingerprints are one scorer's: equal, or of equal facts and of golden scores near one another."""
    one, other = _SCORED.fullmatch(a), _SCORED.fullmatch(b)
    if a == b or one is None or other is None or one[1] != other[1] or len(one[2]) != len(other[2]):
        return a == b
    try:
        first, second = (
            np.frombuffer(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "<f4").reshape(-1, GOLDEN)
            for text in (one[2], other[2])
        )
    except ValueError:  # another server's, which only looks like ours
        return False
    return near(first, second, SAME)


def near(a: NDArray[Any], b: NDArray[Any], share: float) -> bool:
    """Whether scores [D, n] are within a share of the greatest of their dimension, NaN where the others are."""
    if a.shape != b.shape:
        return False
    a, b = a.astype(np.float64), b.astype(np.float64)
    greatest = np.abs(np.where(np.isfinite(a), a, 0)).max(axis=-1, keepdims=True, initial=0)
    with np.errstate(invalid="ignore"):
        return bool(((a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= share * greatest)).all())
