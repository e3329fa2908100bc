"""Media of every kind as files and back; videos without any encoder of video, which nothing damaged gets through."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from palate import kinds, media, webm, wire
from palate.media import MediaError
from palate.models import rates
from palate.records import Medium
from palate.wire import Video, Waveform


def clip(n: int = 20, size: tuple[int, int] = (33, 18)) -> list[Image.Image]:
    """A bar that grows, by which the frames can be told apart."""
    frames = []
    for place in range(n):
        frame = Image.new("RGB", size, "white")
        ImageDraw.Draw(frame).rectangle((0, 0, place, size[1]), fill=(0, 0, 0))
        frames.append(frame)
    return frames


def tone(length: int = 800, channels: int = 2) -> np.ndarray:
    steps = np.arange(length) / 20
    return np.stack([0.5 * np.sin(steps * (1 + channel)) for channel in range(channels)]).astype(np.float32)


def near(a: Image.Image, b: Image.Image, most: float) -> bool:
    return a.size == b.size and np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() < most


@pytest.mark.parametrize("rate", [8.0, 16.0, 23.976, 24.0, 60.0])
def test_a_video_comes_back_frame_by_frame_at_its_rate(rate):
    frames = clip()
    written = kinds.written(Video(frames, rate))
    assert written.type == media.type_of_bytes(written.bytes) == "video/webm"
    read = kinds.read(written)
    assert kinds.kind_of(read) == "videos" and read.rate == pytest.approx(rate, abs=1e-3) and len(read) == 20
    assert all(near(a, b, 3) for a, b in zip(frames, read, strict=True))


def test_arrays_are_videos_and_pictures_bring_nothing_else_along():
    array = np.stack([np.asarray(frame, np.float32) / 255 for frame in clip(3)])
    (made,) = {kinds.kind_of(array), kinds.kind_of(torch.as_tensor(array))}
    read = kinds.read(kinds.written(kinds.rated(torch.as_tensor(array), 12, 0)))
    assert made == "videos" and read.rate == 12 and near(read[2], clip(3)[2], 3)
    secret = clip(1)
    secret[0].info["icc_profile"] = secret[0].info["exif"] = b"Ada's own camera" * 20
    assert b"Ada" not in kinds.written(secret).bytes


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_comes_back_at_its_rate(channels):
    sound = kinds.rated(torch.as_tensor(tone(channels=channels)), 0, 16_000)
    written = kinds.written(sound)
    assert written.type == media.type_of_bytes(written.bytes) == "audio/wav"
    with wave.open(io.BytesIO(written.bytes)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (channels, 16_000, 800)
    read = kinds.read(written)
    assert read.rate == 16_000 and np.abs(read - tone(channels=channels)).max() < 1e-4
    assert kinds.written(read).bytes == written.bytes  # what was read is written as it was
    loud = kinds.read(kinds.written((np.array([3.0, -3.0, np.nan, 0.25], np.float32), 8000)))
    assert np.allclose(loud, [[32767 / 32768, -1, 0, 0.25]])


def test_a_sound_without_a_rate_is_not_written():
    with pytest.raises(MediaError, match="does not say its rate"):
        kinds.written(kinds.rated(tone(), 16, 0))
    assert kinds.rated(tone().view(Waveform), 16, 44_100).rate == 44_100


def test_pictures_and_texts(tmp_path):
    picture = clip(1)[0]
    assert np.array_equal(kinds.read(kinds.written(picture)), picture)
    assert kinds.read(kinds.written("two words")) == "two words"
    (tmp_path / "a.webm").write_bytes(kinds.written(clip(2)).bytes)
    assert len(kinds.read(Medium("video/webm", path="a.webm"), tmp_path)) == 2


@pytest.mark.parametrize("made", [7, None, [], np.zeros((2, 3, 4)), [1, 2], np.zeros((0, 3))])
def test_what_is_no_medium_is_named(made):
    with pytest.raises(MediaError, match="is no picture, video, sound or text"):
        kinds.kind_of(made)
    assert kinds.rated(made, 16, 8000) is made


@pytest.mark.parametrize(
    ("frames", "rate", "said"),
    [
        ([], 16, "these are 0 of"),
        ([*clip(1), *clip(1, (8, 8))], 16, r"these are 2 of \[\(8, 8\), \(33, 18\)\]"),
        (clip(1), 0, "at 0 frames a second"),
        (clip(1), 2000, "at 2000 frames a second"),
    ],
)
def test_what_is_no_video_is_not_written(frames, rate, said):
    with pytest.raises(MediaError, match=said):
        webm.write(frames, rate)


def test_a_pillow_that_cannot_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setattr(webm.features, "check", lambda name: name != "webp")
    with pytest.raises(MediaError, match="which this one lacks: pip install --upgrade pillow"):
        webm.write(clip(1), 16)


@pytest.mark.parametrize(
    ("type", "content", "said"),
    [
        ("video/mp4", b"\0\0\0\x18ftypisom" + b"\0" * 20, "not a readable video of type video/mp4"),
        ("video/webm", b"\x1a\x45\xdf\xa3\x80", "not a readable video of type video/webm"),
        ("video/webm", b"", "a video of type application/octet-stream"),
        ("audio/mpeg", b"ID3" + b"\0" * 20, "not a readable sound of type audio/mpeg"),
        ("audio/wav", b"RIFF\0\0\0\0WAVEfmt ", "not a readable sound of type audio/wav"),
        ("text/plain", b"\xff\xfe\xff", "text is not UTF-8"),
    ],
)
def test_what_is_no_medium_is_refused(type, content, said):
    with pytest.raises(MediaError, match=said):
        kinds.read(Medium(type, content))


def test_a_damaged_video_is_an_error_of_one_line_or_another_video():
    whole = kinds.written(clip(6)).bytes
    random = np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole[: random.integers(20, len(whole) + 1)])
        for place in random.integers(4, len(content), random.integers(0, 5)):
            content[place] = random.integers(256)
        try:
            read = kinds.read(Medium("video/webm", bytes(content)))
            assert len(read) <= 7
        except MediaError as error:
            assert "\n" not in str(error)


def test_a_video_of_predicted_frames_and_of_too_many_is_refused(monkeypatch):
    content = bytearray(kinds.written(clip(2)).bytes)
    at = content.rfind(b"\x9d\x01\x2a") - 3
    content[at] |= 1  # no key frame
    with pytest.raises(MediaError, match="another make than VP8 key frames"):
        webm.read(bytes(content))
    made = kinds.written(clip(5)).bytes
    for name, most, said in (("MAX_FRAMES", 4, "more than 4 frames"), ("MAX_PIXELS_IN_ALL", 2000, "2,000 pixels")):
        with monkeypatch.context() as patch:
            patch.setattr(webm, name, most)
            with pytest.raises(MediaError, match=said):
                webm.read(made)


def test_a_video_of_others_that_says_no_rate_has_that_of_its_times():
    content = webm.write(clip(40), 20).replace(b"\x23\xe3\x83", b"\x23\xe3\x84")  # another element, which is not read
    assert webm.read(content)[1] == pytest.approx(20) and webm.measure(content)[1:] == (40, pytest.approx(20))


def test_every_second_of_a_video_can_be_jumped_to():
    """Its index says where each cluster begins, from the start of the segment's content."""
    content = webm.write(clip(40), 16)
    start = content.index(struct.pack(">I", 0x18538067)) + 4
    start += 9 - content[start].bit_length()
    cues = [i for i in range(len(content)) if content.startswith(b"\xf1\x88", i)]
    places = [struct.unpack_from(">Q", content, at + 2)[0] for at in cues]
    assert len(places) == 3 and all(content.startswith(b"\x1f\x43\xb6\x75", start + place) for place in places)


class Takes:
    """A pipeline whose call says the rate."""

    def __call__(self, prompt: str, frame_rate: int = 25) -> None: ...


class Silent:
    def __call__(self, prompt: str) -> None: ...


def test_how_fast_a_models_videos_run():
    assert rates.frame_rate(Takes(), {}) == 25 and rates.frame_rate(Takes(), {"frame_rate": 30}) == 30
    assert rates.frame_rate(Silent(), {}) == kinds.FRAME_RATE and rates.frame_rate(Silent(), {"frame_rate": 8}) == 8
    assert rates.without_rate(Takes(), {"frame_rate": 30, "n": 1}) == {"frame_rate": 30, "n": 1}
    assert rates.without_rate(Silent(), {"frame_rate": 8, "n": 1}) == {"n": 1}


def test_a_video_keeps_its_rate_on_its_way_to_a_scorer_elsewhere():
    sent = wire.encode(Video(clip(2), 12))
    assert sent["rate"] == 12 and wire.decode(sent).rate == 12 and len(wire.decode(sent)) == 2
    assert "rate" not in (plain := wire.encode(clip(2))) and wire.decode(plain).rate == wire.FRAME_RATE
    for rate in (0, -1, "12", True, float("inf"), None):
        with pytest.raises(wire.WireError, match="frames a second is not read"):
            wire.decode({**sent, "rate": rate})
