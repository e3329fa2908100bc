"""The kinds of media there are: what each is in memory, and the file that it is written as.

    pictures   a PIL picture                                                    image/png, lossless
    videos     a `wire.Video`, a list of pictures, or an array [F, H, W, 3], 0 to 1   video/webm, lossy (`palate.webm`)
    sounds     a `wire.Waveform` [C, L] or [L], a tensor of that shape, -1 to 1  audio/wav, 16 bits
    texts      a str                                                            text/plain

Videos and sounds carry their rate, so that none has to be guessed when they are played, written or heard by a judge.
"""

from __future__ import annotations

import contextlib
import io
import wave
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from palate import clips, media, webm, wire
from palate.media import MediaError
from palate.records import Medium
from palate.wire import FRAME_RATE, Video, Waveform

Kind = Literal["pictures", "videos", "sounds", "texts"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ENDINGS = {"image/png": ".png", "video/webm": ".webm", "audio/wav": ".wav", "text/plain": ".txt"}  # of what is written
_BY_TYPE: dict[str, Kind] = {"image": "pictures", "video": "videos", "audio": "sounds", "text": "texts"}


def kind_of(made: Any) -> Kind:
    """Which kind a medium in memory is. Raises MediaError for what is none."""
    if isinstance(made, str):
        return "texts"
    if isinstance(made, Image.Image):
        return "pictures"
    if isinstance(made, list | tuple) and made and all(isinstance(frame, Image.Image) for frame in made):
        return "videos"
    held = made[0] if isinstance(made, tuple) and len(made) == 2 else made
    shape = tuple(getattr(held, "shape", ()))
    if len(shape) in (1, 2) and 0 not in shape:
        return "sounds"
    if len(shape) == 4 and shape[-1] == 3 and len(held):
        return "videos"
    raise MediaError(f"a {type(made).__name__} is no picture, video, sound or text", "unknown kind")


def kind_of_type(type: str) -> Kind:
    """Which kind a media type is. Raises MediaError for what is none."""
    if (kind := _BY_TYPE.get(type.partition("/")[0])) is None:
        raise MediaError(f"media of type {type} are no pictures, videos, sounds or texts", "unknown kind")
    return kind


def rated(made: Any, frame_rate: float, sample_rate: int) -> Any:
    """The medium as it is, a video as a `Video` and a sound as a `Waveform` that know their rates."""
    try:
        kind = kind_of(made)
    except MediaError:  # whoever writes or judges it says so
        return made
    if kind == "videos":
        return Video(frames_of(made), getattr(made, "rate", frame_rate))
    if kind == "sounds":
        sound = _waveform(made)
        sound.rate = sound.rate or sample_rate
        return sound
    return made


def frames_of(video: Any) -> list[Image.Image]:
    """A video's frames as pictures; arrays are rounded to 8 bits, as files hold them."""
    if isinstance(video, list | tuple):
        return list(video)
    array = np.asarray(video.detach().float().cpu() if hasattr(video, "detach") else video)
    if array.dtype != np.uint8:
        array = (array.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(frame) for frame in array]


def _waveform(sound: Any) -> Waveform:
    """A sound [C, L] or [L] in float32, whose rate is 0 where nobody said it."""
    held, rate = sound if isinstance(sound, tuple) else (sound, getattr(sound, "rate", 0))
    array = np.asarray(held.detach().float().cpu() if hasattr(held, "detach") else held, np.float32)
    made = array.view(Waveform)
    made.rate = int(rate)
    return made


# --- as files ---------------------------------------------------------------------------------------------------------


def written(made: Any) -> Medium:
    """A medium in memory as the file that holds it. Raises MediaError, or WireError, for what cannot be one.

    A video takes its `rate`, else FRAME_RATE; a sound without one is refused. Sounds are cut off at -1 and 1, as any
    player does.
    """
    kind = kind_of(made)
    if kind == "texts":
        return Medium("text/plain", made.encode())
    if kind == "pictures":
        return Medium("image/png", wire.png(made))
    if kind == "videos":
        return Medium("video/webm", webm.write(frames_of(made), getattr(made, "rate", FRAME_RATE)))
    return Medium("audio/wav", _wav(_waveform(made)))


def keep(folder: Path, name: str, made: Any) -> Path:
    """Writes a medium as `name` and its kind's ending, whole or not at all. Raises as `written` does."""
    medium = written(made)
    path = folder / f"{name}{ENDINGS[medium.type]}"
    aside = path.with_suffix(".partial")
    aside.write_bytes(medium.bytes or b"")
    aside.replace(path)
    return path


def _wav(sound: Waveform) -> bytes:
    if sound.rate <= 0:
        raise MediaError("a sound that does not say its rate cannot be written", "no rate")
    buffer = io.BytesIO()
    channels = (np.atleast_2d(np.nan_to_num(sound)) * 32768).round().clip(-32768, 32767)
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(channels.T.astype("<i2").tobytes())
    return buffer.getvalue()


def measured(path: Path) -> dict[str, Any]:
    """Type, size and rate of a file that `written` made, as it says itself: nothing of it is decoded."""
    type = media.type_of_path(path.name)
    return {"type": type, **_measured(path, type)}


def _measured(path: Path, type: str) -> dict[str, Any]:
    if type == "image/png":
        with Image.open(path, formats=["PNG"]) as picture:
            return {"width": picture.width, "height": picture.height}
    if type == "video/webm":
        (width, height), frames, rate = webm.measure(path.read_bytes())
        return {"width": width, "height": height, "frames": frames, "frame_rate": rate}
    if type == "audio/wav":
        with wave.open(str(path)) as file:
            seconds = file.getnframes() / file.getframerate()
            return {"channels": file.getnchannels(), "sample_rate": file.getframerate(), "seconds": seconds}
    return {}


def read(medium: Medium, root: str | Path | None = None) -> Any:
    """A medium's file as what it is in memory: a picture, a `Video`, a `Waveform`, a text.

    root: the folder that paths are relative to. Pictures are PNG, JPEG or WebP. What `written` makes is read by itself,
    videos and sounds of any other make by PyAV (`palate.clips`). Raises MediaError saying what is wrong.
    """
    kind = _BY_TYPE.get(medium.type.partition("/")[0])
    if kind in (None, "pictures"):
        return media.decode(medium, root)
    content = media.medium_bytes(medium, root)
    if kind == "texts":
        media.check(Medium(medium.type, content))
        return content.decode()
    shown = media.type_of_bytes(content)
    return _video(content, shown) if kind == "videos" else sound(content, shown)


def _video(content: bytes, type: str) -> Video:
    if type == "video/webm":
        try:
            return Video(*webm.read(content))
        except MediaError as error:
            if error.kind != webm.OTHER:
                raise
    return clips.video(content, type)


def sound(content: bytes, type: str, longest: float | None = None) -> Waveform:
    """A sound's file as `read` reads it; longest: in seconds, of one that PyAV has to read. Raises MediaError."""
    if type == "audio/wav":
        with contextlib.suppress(wire.WireError):  # it knows WAV of 16 bits and floats alone
            return wire.unwav(content)
    return clips.sound(content, type, longest)
