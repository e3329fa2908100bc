"""Videos and sounds of other makes, read, and brought to what a model draws."""

from __future__ import annotations

import builtins
import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from palate import clips, kinds
from palate.media import MediaError
from palate.models import geometry
from palate.models.geometry import Form
from palate.records import Medium
from palate.wire import Video, Waveform


def encoded(frames: int = 12, rate: int = 8, codec: str = "libx264", container: str = "mp4", size=(64, 48)) -> bytes:
    """Frames that get brighter, ten levels each, up to white."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=Fraction(rate), options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for level in range(frames):
            grey = np.full((size[1], size[0], 3), min(20 + 10 * level, 255), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return out.getvalue()


def tone(codec: str, container: str, rate: int = 44_100, seconds: float = 0.5) -> bytes:
    out = io.BytesIO()
    wave = (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = "stereo"
        fits = av.AudioResampler(format=stream.format.name, layout="stereo", rate=rate, frame_size=stream.frame_size)
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        frame.rate = rate
        for part in [*fits.resample(frame), *fits.resample(None)]:
            for packet in stream.encode(part):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return out.getvalue()


@pytest.mark.parametrize(
    ("type", "codec", "container"),
    [
        ("video/mp4", "libx264", "mp4"),
        ("video/quicktime", "mpeg4", "mov"),
        ("video/webm", "libvpx-vp9", "webm"),
        ("video/webm", "libvpx", "webm"),  # VP8 that predicts frames from frames
        ("video/x-msvideo", "mpeg4", "avi"),
    ],
)
def test_videos_of_any_make_are_read(type, codec, container):
    video = kinds.read(Medium(type, encoded(codec=codec, container=container)))
    assert (len(video), video.rate, video[0].size) == (12, 8.0, (64, 48))
    levels = [float(np.asarray(frame).mean()) for frame in video]
    assert np.allclose(levels, 20 + 10 * np.arange(12), atol=4)


@pytest.mark.parametrize(
    ("type", "codec", "container"),
    [("audio/mpeg", "libmp3lame", "mp3"), ("audio/flac", "flac", "flac"), ("audio/wav", "pcm_s24le", "wav")],
)
def test_sounds_of_any_make_are_read(type, codec, container):
    sound = kinds.read(Medium(type, tone(codec, container)))
    assert sound.shape[0] == 2 and sound.rate == 44_100 and 0.4 < float(np.abs(sound).max()) < 0.6
    assert abs(sound.shape[1] / 44_100 - 0.5) < 0.06


def test_what_cannot_be_read_is_said(monkeypatch):
    whole = encoded()
    for type, content in (("video/mp4", whole[: len(whole) // 3]), ("video/mp4", b"\0\0\0\x18ftypmp42" + bytes(200))):
        with pytest.raises(MediaError, match="not a readable video of type video/mp4"):
            kinds.read(Medium(type, content))
    with pytest.raises(MediaError, match="no video in a file of type"):
        kinds.read(Medium("video/x-msvideo", tone("pcm_s16le", "avi")))
    monkeypatch.setattr(clips, "MAX_FRAMES", 5)
    with pytest.raises(MediaError, match="more than 5 frames"):
        clips.video(whole, "video/mp4")
    monkeypatch.setattr(clips, "MAX_SECONDS", 0.1)
    with pytest.raises(MediaError, match=r"more than 0\.1 seconds"):
        clips.sound(tone("flac", "flac"), "audio/flac")
    known = builtins.__import__

    def without(name, *rest, **more):
        if name == "av":
            raise ImportError(name)
        return known(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MediaError, match=r"without PyAV only WebM .* is read: pip install 'palate\[video\]'"):
        kinds.read(Medium("video/mp4", whole))
    with pytest.raises(MediaError, match=r"without PyAV only WAV is read"):
        kinds.read(Medium("audio/flac", b"fLaC" + bytes(20)))


# --- to what a model draws --------------------------------------------------------------------------------------------


def levels(n: int, rate: float, size=(32, 32)) -> Video:
    return Video([Image.new("RGB", size, (i, i, i)) for i in range(n)], rate)


@pytest.mark.parametrize(
    ("there", "rate", "kept"),
    [
        (5, 30, [0, 1, 2, 3, 4]),  # as many as are drawn: none is dropped, whatever the rate
        (20, 16, [0, 2, 4, 6, 8]),  # at the model's 8 a second
        (4, 4, [0, 0, 1, 1, 2]),  # slower: frames stay for longer
        (8, 30, [0, 2, 4, 5, 7]),  # too short at its speed, but enough frames: from the first to the last
    ],
)
def test_a_video_keeps_its_speed_as_far_as_it_reaches(there, rate, kept):
    made = geometry.fitted(levels(there, rate), Form("videos", (16, 16), 5, 8.0))
    assert [frame.getpixel((0, 0))[0] for frame in made] == kept
    assert made.rate == 8 and {frame.size for frame in made} == {(16, 16)}


def test_a_video_that_is_too_short_is_refused():
    with pytest.raises(MediaError, match=r"4 frames at 16 a second is shorter than the 5 at 8"):
        geometry.fitted(levels(4, 16), Form("videos", (16, 16), 5, 8.0))


def test_a_sound_is_brought_to_rate_channels_and_length():
    form = Form("sounds", None, 8000, 16_000.0, 2)
    wave = np.sin(2 * np.pi * 100 * np.arange(11_025) / 44_100).astype(np.float32)[None].view(Waveform)
    wave.rate = 44_100
    made = geometry.fitted(wave, form)
    assert made.shape == (2, 8000) and made.rate == 16_000
    expected = np.sin(2 * np.pi * 100 * np.arange(4000) / 16_000)
    np.testing.assert_allclose(np.asarray(made[0, 50:3900]), expected[50:3900], atol=0.02)
    assert not np.asarray(made[:, 4100:]).any()  # silence after its end
