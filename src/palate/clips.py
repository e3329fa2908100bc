"""Videos and sounds of any make, by PyAV, where it is installed (`pip install 'palate[video]'`).

What Palate itself writes needs none of it (`palate.webm`, WAV). Decoders of FFmpeg see the data here: the container is
the one that its first bytes show, nothing is fetched, and frames, pixels and seconds are bounded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from palate.media import MAX_PIXELS, MediaError
from palate.webm import MAX_PIXELS_IN_ALL
from palate.wire import FRAME_RATE, Video, Waveform

MAX_FRAMES = 4096
MAX_SECONDS = 1800.0  # of a sound
_CONTAINERS = {
    "video/mp4": "mov", "video/quicktime": "mov", "video/webm": "matroska", "video/x-matroska": "matroska",
    "video/x-msvideo": "avi", "audio/mp4": "mov", "audio/mpeg": "mp3", "audio/flac": "flac", "audio/ogg": "ogg",
    "audio/wav": "wav",
}  # fmt: skip


def video(content: bytes, type: str) -> Video:
    """All frames of the first video in a file of a media type, upright as it is to be shown.

    Raises MediaError without PyAV, for a type that is no video's, damage, and too many frames or pixels.
    """
    with _opened(content, type, "video") as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or FRAME_RATE)
        frames: list[Image.Image] = []
        pixels = 0
        for frame in container.decode(stream):
            pixels += frame.width * frame.height
            if len(frames) == MAX_FRAMES:
                raise MediaError(f"a video has more than {MAX_FRAMES} frames", "too many frames")
            if frame.width * frame.height > MAX_PIXELS or pixels > MAX_PIXELS_IN_ALL:
                raise MediaError(f"a video has more than {MAX_PIXELS_IN_ALL:,} pixels in all", "too many pixels")
            picture = frame.to_image()
            turned = getattr(frame, "rotation", 0)
            frames.append(picture.rotate(turned, expand=True) if turned else picture)
        if not frames:
            raise MediaError("a video without frames", "damaged")
        return Video(frames, rate)


def sound(content: bytes, type: str, longest: float | None = None) -> Waveform:
    """The first sound in a file of a media type [C, L], -1 to 1, at its own rate; longest: seconds, else MAX_SECONDS.

    Raises MediaError as `video` does.
    """
    with _opened(content, type, "audio") as (container, stream):
        import av

        rate, longest = int(stream.rate), longest or MAX_SECONDS
        planar = av.AudioResampler(format="fltp", layout=stream.layout.name, rate=rate)
        parts: list[np.ndarray[Any, Any]] = []
        length = 0
        for frame in container.decode(stream):
            for part in planar.resample(frame):
                parts.append(part.to_ndarray())
                length += parts[-1].shape[-1]
            if length > longest * rate:
                raise MediaError(f"a sound of more than {longest:g} seconds", "too long")
        parts += [part.to_ndarray() for part in planar.resample(None)]
        if not parts:
            raise MediaError("a sound without samples", "damaged")
        made = np.concatenate(parts, -1).astype(np.float32).view(Waveform)
        made.rate = rate
        return made


@contextmanager
def _opened(content: bytes, type: str, wanted: str) -> Iterator[tuple[Any, Any]]:
    """The container and its first stream of a kind; what goes wrong inside is a MediaError."""
    kind = {"video": "video", "audio": "sound"}[wanted]
    try:
        import av
    except ImportError:
        own = {"video": "WebM as `palate sample` writes it", "audio": "WAV"}[wanted]
        raise MediaError(
            f"a {kind} of type {type}, and without PyAV only {own} is read: pip install 'palate[video]'", "needs PyAV"
        ) from None
    if type not in _CONTAINERS:
        raise MediaError(f"a {kind} of type {type} cannot be read", "unknown type")
    av.logging.set_level(av.logging.PANIC)  # what is wrong is said once, by the error
    try:
        with av.open(io.BytesIO(content), format=_CONTAINERS[type], options={"enable_drefs": "0"}) as container:
            streams = getattr(container.streams, wanted)
            if not streams:
                raise MediaError(f"no {kind} in a file of type {type}", "damaged")
            yield container, streams[0]
    except MediaError:
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise MediaError(f"not a readable {kind} of type {type} ({why})", "damaged") from None
