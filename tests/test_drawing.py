"""`palate sample --image`: which picture a prompt changes, what is drawn again, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from palate import kinds
from palate.doors import drawing
from tests import zoo

KEEP = {"k": 1, "seed": 3, "num_inference_steps": 4, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "sd15"
    zoo.build("sd15").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red cat\na blue dog\n")
    return path


def some_picture(path, seed, size=(40, 24)):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, name in enumerate(("b.png", "a.jpg")):
        some_picture(folder / name, seed)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def pixels(folder):
    return {path.name: np.asarray(Image.open(path), int) for path in sorted(folder.glob("*.png"))}


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_each_prompt_changes_its_picture(model, prompts, pictures, tmp_path):
    out = drawing.sample(model, prompts, out=tmp_path / "out", image=pictures, strength=0.5, **KEEP)
    assert [(line["prompt"], line["image"], line["strength"]) for line in lines(out)] == [
        ("a red cat", "a.jpg", 0.5),
        ("a blue dog", "b.png", 0.5),
    ]
    before = pixels(out)
    (out / "00001-0.png").unlink()
    drawing.sample(model, prompts, out=out, image=pictures, strength=0.5, batch_size=1, **KEEP)
    assert max(np.abs(before[name] - again).max() for name, again in pixels(out).items()) <= 1
    with pytest.raises(ValueError, match=r"holds other samples: strength: 0\.5 -> 0\.75"):
        drawing.sample(model, prompts, out=out, image=pictures, strength=0.75, **KEEP)
    some_picture(pictures / "b.png", 9)
    with pytest.raises(ValueError, match=r"holds other samples: image_sha256"):
        drawing.sample(model, prompts, out=out, image=pictures, strength=0.5, **KEEP)


def test_one_picture_or_one_prompt_serves_for_all(model, prompts, pictures, tmp_path):
    one = drawing.sample(model, prompts, out=tmp_path / "one", image=pictures / "b.png", strength=0.5, **KEEP)
    assert [line["image"] for line in lines(one)] == ["b.png", "b.png"]
    prompts.write_text("a hat\n")
    many = drawing.sample(model, prompts, out=tmp_path / "many", image=pictures, strength=0.5, **KEEP)
    assert [(line["prompt"], line["image"]) for line in lines(many)] == [("a hat", "a.jpg"), ("a hat", "b.png")]
    first, second = pixels(many).values()
    assert (first != second).any()


def test_a_prompt_that_stands_twice_is_drawn_once_and_it_is_said(model, prompts, pictures, tmp_path, capsys):
    prompts.write_text("a hat\na red cat\n a hat\n\n")
    out = drawing.sample(model, prompts, out=tmp_path / "out", **KEEP)
    assert [line["prompt"] for line in lines(out)] == ["a hat", "a red cat"] and len(pixels(out)) == 2
    said = capsys.readouterr().out
    assert "1 lines of" in said and "repeat a prompt: it is drawn once (-k draws more of each)" in said
    drawing.sample(model, prompts, out=out, **KEEP)
    assert "2 pictures in" in (said := capsys.readouterr().out) and "(0 new)" in said
    alone = drawing.sample(model, prompts, out=tmp_path / "one", image=pictures / "b.png", strength=0.5, **KEEP)
    assert [line["prompt"] for line in lines(alone)] == ["a hat", "a red cat"]


def test_a_prompt_that_stands_twice_changes_two_pictures(model, prompts, pictures, tmp_path, capsys):
    some_picture(pictures / "c.png", 5)
    prompts.write_text("a hat\na red cat\na hat\n")
    out = drawing.sample(model, prompts, out=tmp_path / "out", image=pictures, strength=0.5, **KEEP)
    assert [(line["prompt"], line["image"]) for line in lines(out)] == [
        ("a hat", "a.jpg"), ("a red cat", "b.png"), ("a hat", "c.png"),
    ]  # fmt: skip
    assert "repeat" not in capsys.readouterr().out
    drawing.sample(model, prompts, out=out, image=pictures, strength=0.5, **KEEP)
    assert "(0 new)" in capsys.readouterr().out


def test_the_whole_strength_is_no_picture_at_all(model, prompts, pictures, tmp_path):
    edited = drawing.sample(model, prompts, out=tmp_path / "edited", image=pictures, strength=1, **KEEP)
    drawn = drawing.sample(model, prompts, out=tmp_path / "drawn", **KEEP)
    assert all((a == b).all() for a, b in zip(pixels(edited).values(), pixels(drawn).values(), strict=True))
    assert "image" not in lines(drawn)[0] and "strength" not in json.loads((drawn / "sampling.json").read_text())


def test_a_picture_is_scaled_to_cover_and_cropped_to_its_middle(tmp_path):
    """Thirds in red, green and blue, three times as wide as high: the green third is what is left."""
    wide = np.zeros((30, 90, 3), np.uint8)
    for third in range(3):
        wide[:, 30 * third : 30 * third + 30, third] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    fitted = drawing.fitted(tmp_path / "wide.png", (16, 16))
    assert fitted.size == (16, 16)
    assert (np.asarray(fitted)[:, 3:-3] == (0, 255, 0)).all()


def test_videos_and_sounds_are_written_as_they_are_and_known_again(model, prompts, tmp_path, monkeypatch, capsys):
    made = [kinds.Video([Image.new("RGB", (8, 6), "red")] * 3, 12), kinds.rated(np.ones((2, 40)), 0, 8000)]
    monkeypatch.setattr(drawing.sampling, "sample", lambda *_, **__: list(made))
    out = drawing.sample(model, prompts, out=tmp_path / "out", **KEEP)
    video, sound = lines(out)
    assert video["file"] == "00000-0.webm" and sound["file"] == "00001-0.wav"
    assert [video[key] for key in ("type", "width", "height", "frames", "frame_rate")] == ["video/webm", 8, 6, 3, 12]
    assert [sound[key] for key in ("type", "channels", "sample_rate", "seconds")] == ["audio/wav", 2, 8000, 0.005]
    monkeypatch.setattr(drawing.lookup, "load_arm", lambda *_: pytest.fail("a model was loaded"))
    drawing.sample(model, prompts, out=out, **KEEP)
    assert lines(out) == [video, sound] and "2 videos in" in (said := capsys.readouterr().out) and "(0 new)" in said


def test_what_a_benchmark_wants_as_pictures_is_not_drawn_by_a_model_of_videos(tmp_path, prompts, monkeypatch):
    folder = tmp_path / "video"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    monkeypatch.setattr(drawing.lookup, "load_arm", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=r"--layout partiprompts is of pictures, and .*video makes videos"):
        drawing.sample(str(folder), prompts, out=tmp_path / "out", layout="partiprompts", **KEEP)


@pytest.mark.parametrize(
    ("image", "strength", "said"),
    [
        ("nowhere.png", 0.5, r"no such file, nor a folder with \.jpeg, \.jpg, \.png, \.webp in it"),
        ("empty", 0.5, r"no such file, nor a folder with"),
        ("pictures", 0.0, r"--strength: strength is 0; give one above 0"),
        ("pictures", 1.5, r"--strength: strength is 1\.5"),
        ("three", 0.5, r"holds 3 pictures for 2 prompts: give as many of each, or one of either"),
        ("broken.png", 0.5, r"broken\.png: not a .*PNG, JPEG or WebP picture"),
        (None, 0.5, r"--strength says how far a picture is changed: give the picture by --image"),
    ],
)
def test_what_cannot_be_changed_is_refused(model, prompts, pictures, tmp_path, image, strength, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "three").mkdir()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    for seed in range(3):
        some_picture(tmp_path / "three" / f"{seed}.webp", seed)
    place = tmp_path / image if image else None
    with pytest.raises(ValueError, match=said):
        drawing.sample(model, prompts, out=tmp_path / "out", image=place, strength=strength, **KEEP)
