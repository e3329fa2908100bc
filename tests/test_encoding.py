"""Data become a cache and an index, however often the work is cut off; what training reads of them is the same."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from palate import datasets
from palate.datasets import parquet
from palate.doors import encoder, encoding, standing
from palate.durable import StorageError
from palate.media import DatasetError
from palate.models import geometry
from palate.models.diffusion import DiffusionPolicy
from palate.records import Medium, Preference
from palate.training import cache as caches
from palate.training.cache import CacheError, TensorCache
from palate.training.processes import Processes
from palate.training.sources import collate
from palate.training.stored import StoredRows
from tests import zoo

NAN = float("nan")
SIDE = 16


def picture(seed: int) -> Medium:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return Medium("image/png", buffer.getvalue())


def row(i: int, **fields) -> Preference:
    """Each row shares a picture with the next, and prompts come twice."""
    made = {"prompt": f"a cat {i % 4}", "media": (picture(i), picture(i + 1)), "prefer": ((NAN, 1.0), (0.0, NAN))}
    return Preference(**{**made, **fields})


@pytest.fixture(scope="module")
def policy():
    made = DiffusionPolicy(zoo.build("sd15"))
    assert made.decode(torch.zeros(1, *made.latent_shape))[0].size == (SIDE, SIDE)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pairs"
    three = Preference("a dog", (picture(20), None, picture(21)), ((NAN, NAN, 0.0), (NAN,) * 3, (1.0, NAN, NAN)),
                       mask=(True, False, True), scores=((1.0,), (NAN,), (2.0,)), dimensions=("beauty",))  # fmt: skip
    others = [row(i, scores=((0.5,), (NAN,)), dimensions=("beauty",)) for i in range(7)]
    parquet.write(folder, [*others, replace(three, weight=0.5)])
    return folder


def rows_of(policy, data, folder, *, cache="cache", bad=0.0, processes=None, **options) -> StoredRows:
    with TensorCache(folder / cache) as kept:
        return encoding.stored(policy, datasets.open(data), kept, folder / "run", max_bad_fraction=bad,
                               processes=processes or Processes(), **options)  # fmt: skip


def same(one, other) -> bool:
    named = ("x0", "prefer", "votes", "scores", "mask")
    tensors = [(getattr(one, name), getattr(other, name)) for name in named]
    tensors += [(one.cond.rows[name], other.cond.rows[name]) for name in other.cond.rows]
    equal = all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) and a.dtype == b.dtype for a, b in tensors)
    return equal and (one.id, one.prompt, one.weight, one.cond.key) == (
        other.id,
        other.prompt,
        other.weight,
        other.cond.key,
    )


def test_what_is_read_from_disk_is_what_is_encoded_at_once(policy, data, tmp_path, capsys):
    rows = rows_of(policy, data, tmp_path)
    at_once = encoding.encode(policy, encoding.read_preferences(data, 0.0), batch_size=1)
    assert len(rows) == len(at_once) == 8 and rows.prompts == [row.prompt for row in at_once]
    assert all(same(one, other) for one, other in zip(rows, at_once, strict=True))
    assert rows[-1].mask.tolist() == [True, False, True] and rows[1:3][1].id == rows[2].id
    labels = rows.labels(7)
    assert labels.mask.tolist() == [True, False, True] and labels.x0.numel() == 0 and labels.weight == 0.5
    entries = len(list((tmp_path / "cache").rglob("*.safetensors")))
    assert entries == 8 + 2 + 5 + 1, "a picture or prompt that comes twice is kept once"
    assert f"of 8 rows: {8 * sum(_sizes(rows, 0)) / 2**20:,.1f} MiB or less in" in capsys.readouterr().out


def _sizes(rows, index):
    line = rows.line(index)
    return [rows.cache.size(key) for key in [*line.media, line.cond]]


def test_a_second_run_encodes_nothing(policy, data, tmp_path, monkeypatch):
    first = rows_of(policy, data, tmp_path)
    monkeypatch.setattr(policy, "encode", lambda media: pytest.fail("a picture was encoded again"))
    monkeypatch.setattr(policy, "condition", lambda prompts: pytest.fail("a prompt was encoded again"))
    again = rows_of(policy, data, tmp_path)
    assert torch.equal(again.facts(), first.facts()) and same(again[3], first[3])


def seen_by(monkeypatch) -> list:
    """Media that are read from here on."""
    seen, real = [], encoder.medium_bytes
    monkeypatch.setattr(encoder, "medium_bytes", lambda medium, root: (seen.append(medium), real(medium, root))[1])
    return seen


def test_a_run_that_goes_on_reads_no_medium_while_nothing_has_changed(policy, data, tmp_path, monkeypatch, capsys):
    own = tmp_path / "data"
    shutil.copytree(data, own)
    first = rows_of(policy, own, tmp_path)
    seen = seen_by(monkeypatch)
    again = rows_of(policy, own, tmp_path)
    assert not seen and torch.equal(again.facts(), first.facts()) and same(again[3], first[3])
    assert "8 rows stand as they were listed" in capsys.readouterr().out
    shard = next(own.glob("*.parquet"))
    reasons = {
        "other files": lambda: os.utime(shard, (0, 0)),
        "an entry that is gone": lambda: again.cache._path(again.line(2).media[0]).unlink(),
        "a note that is cut": lambda: (tmp_path / "run" / standing.KNOWN_BY).write_text('{"made'),
        "no index": lambda: (tmp_path / "run" / encoding.INDEX).unlink(),
    }
    for reason, happen in reasons.items():
        happen()
        seen.clear()
        assert torch.equal(rows_of(policy, own, tmp_path).facts(), first.facts()) and len(seen) == 16, reason
        seen.clear()
        assert rows_of(policy, own, tmp_path) is not None and not seen, reason
    rows_of(policy, own, tmp_path, bad=0.5)
    assert len(seen) == 16, "another setting"
    changed = DiffusionPolicy(_changed())
    rows_of(changed, own, tmp_path, bad=0.5)
    assert len(seen) == 32, "another model"


def test_what_a_disk_has_damaged_is_found_when_it_is_read_and_mended_by_the_next_start(policy, data, tmp_path):
    expected = rows_of(policy, data, tmp_path)[2]
    again = rows_of(policy, data, tmp_path)
    path = again.cache._path(again.line(2).media[0])
    whole = path.read_bytes()
    path.write_bytes(bytes([*whole[:-5], whole[-5] ^ 1, *whole[-4:]]))
    with pytest.raises(CacheError, match="run the same command again"):
        again[2]
    assert same(rows_of(policy, data, tmp_path)[2], expected)


class Killed(BaseException):
    pass


def test_what_a_killed_process_had_encoded_is_there(policy, data, tmp_path, monkeypatch):
    real, seen = type(policy).encode, []

    def encode(self, media):
        if len(seen) == 4:
            raise Killed
        seen.append(media)
        return real(self, media)

    with monkeypatch.context() as patch:
        patch.setattr(type(policy), "encode", encode)
        with pytest.raises(Killed):
            rows_of(policy, data, tmp_path)
    assert not (tmp_path / "run" / encoding.INDEX).exists()
    monkeypatch.setattr(type(policy), "encode", lambda self, media: (seen.append(media), real(self, media))[1])
    rows = rows_of(policy, data, tmp_path)
    assert len(seen) == 10, "each picture was encoded once"
    fresh = rows_of(policy, data, tmp_path / "fresh")
    assert all(same(one, other) for one, other in zip(rows, fresh, strict=True))


def test_a_damaged_entry_is_made_again(policy, data, tmp_path):
    rows = rows_of(policy, data, tmp_path)
    expected = rows[2]
    path = rows.cache._path(rows.line(2).media[0])
    path.write_bytes(path.read_bytes()[:-3])
    assert same(rows_of(policy, data, tmp_path)[2], expected)


def test_another_model_has_entries_of_its_own(policy, data, tmp_path):
    other = DiffusionPolicy(zoo.build("sd_v_zero_snr"))
    one, two = rows_of(policy, data, tmp_path), rows_of(other, data, tmp_path)
    assert one.line(0).cond == two.line(0).cond and one.line(0).media == two.line(0).media  # the same encoders
    changed = DiffusionPolicy(_changed())
    three = rows_of(changed, data, tmp_path)
    assert three.line(0).cond == one.line(0).cond and three.line(0).media != one.line(0).media
    assert torch.equal(three.facts(), one.facts()), "facts are of the pictures, not of what encodes them"


def _changed():
    import copy

    pipeline = copy.deepcopy(zoo.build("sd15"))
    next(pipeline.vae.parameters()).data *= 1.01
    return pipeline


def test_processes_share_the_work_and_the_order_stays(policy, data, tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    monkeypatch.setattr(Processes, "tell", lambda self, message: None)
    monkeypatch.setattr(Processes, "sums", lambda self, own: own)
    merge = encoding.merge
    monkeypatch.setattr(encoding, "merge", lambda parts, path: None)
    write, blank = encoding.write_lines, tmp_path / "run" / encoding.INDEX
    monkeypatch.setattr(encoding, "write_lines", lambda path, lines: (write(path, lines), blank.touch())[0])
    for rank in (1, 0, 2):
        rows_of(policy, data, tmp_path, processes=Processes(rank, 3))
    merge([tmp_path / "run" / f"{encoding.INDEX}.part-{rank}" for rank in range(3)], blank)
    monkeypatch.undo()
    alone = rows_of(policy, data, tmp_path / "alone")
    assert [json.loads(line) for line in blank.read_text().splitlines()] == [vars(line) for line in alone.lines()]
    assert not list((tmp_path / "run").glob("*.part-*"))


def test_bad_media_are_left_out_up_to_a_share(policy, data, tmp_path, capsys):
    cut = Medium("image/png", picture(0).bytes[:60])
    rows = [row(i) for i in range(6)] + [row(6, media=(picture(6), cut)), row(7, media=(cut, cut))]
    parquet.write(tmp_path / "bad", rows)
    with pytest.raises(DatasetError, match=r"bad: .*candidate|bad: part-00000.*more\).*data.max_bad_fraction"):
        rows_of(policy, tmp_path / "bad", tmp_path, bad=0.1)
    found = rows_of(policy, tmp_path / "bad", tmp_path, bad=0.2)
    assert len(found) == 7 and found[6].mask.tolist() == [True, False]
    assert "left out: 3 media, 0 rows: part-00000" in capsys.readouterr().out


def test_a_dimension_of_several_is_learnt(policy, tmp_path):
    from palate.records import Aspect

    motion = Aspect("motion", ((NAN, 0.0), (1.0, NAN)))
    parquet.write(tmp_path / "data", [row(0, aspects=(motion,)), row(1)])
    rows = rows_of(policy, tmp_path / "data", tmp_path, dimension="motion")
    assert len(rows) == 1 and rows[0].prefer[0, 1] == 0


def test_a_change_sees_the_pictures(policy, data, tmp_path):
    def change(one, shown):
        media = shown.media()
        assert len(set(shown.content)) == len(media) and shown.place < 8
        assert [None if m is None else m.size for m in media] in (
            [(SIDE, SIDE)] * 2,
            [(SIDE, SIDE), None, (SIDE, SIDE)],
        )
        return replace(one, weight=3.0, id=one.id)

    assert {line.weight for line in rows_of(policy, data, tmp_path, change=change).lines()} == {3.0}


def test_a_picture_that_a_change_cannot_read_is_masked_and_counted_once(policy, tmp_path, capsys):
    """Whether or not the change looks, since it need not where its outcome is known: the row is the same."""
    damaged = Medium("image/png", picture(6).bytes[:60])
    parquet.write(tmp_path / "data", [row(0, media=(picture(6), damaged))])
    rows = {}
    for look in (True, False):
        change = lambda one, shown: (shown.media() if look else None, one)[1]  # noqa: E731, B023
        rows[look] = rows_of(policy, tmp_path / "data", tmp_path / str(look), bad=0.5, change=change)
        assert "left out: 1 media, 0 rows" in capsys.readouterr().out
    assert rows[True].line(0) == rows[False].line(0) and rows[True][0].mask.tolist() == [True, False]


def test_a_disk_without_room_is_found_before_all_is_encoded(policy, data, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"disk full: .* make room and run again"):
        rows_of(policy, data, tmp_path)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4
    monkeypatch.undo()
    with TensorCache(tmp_path / "small", budget=100) as kept:
        encoding.stored(policy, datasets.open(data), kept, tmp_path, max_bad_fraction=0.0, processes=Processes())
        assert "warning: that may be more than the" in capsys.readouterr().out
        assert kept.used() > 100, "what this run uses stays"


def sized(height: int, width: int, seed: int = 0, form: str = "PNG") -> Medium:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    exif = Image.Exif()
    if form == "JPEG":
        exif[0x0112] = 6  # lies on its side
    Image.fromarray(pixels).save(buffer, form, exif=exif)
    return Medium(f"image/{form.lower()}", buffer.getvalue())


def test_pictures_of_other_sizes_are_brought_to_the_models_and_it_is_said(policy, tmp_path, capsys):
    parquet.write(tmp_path / "data", [row(0, media=(sized(40, 24), sized(SIDE, SIDE, 1)))])
    (found,) = rows_of(policy, tmp_path / "data", tmp_path)
    assert found.x0.shape[1:] == policy.latent_shape
    expected = Image.open(io.BytesIO(sized(40, 24).bytes)).resize((16, 16), Image.Resampling.LANCZOS, (0, 8, 24, 32))
    assert torch.equal(found.x0[0], policy.encode([expected])[0])
    assert "1 pictures were resized and cropped to 16 x 16 (data.buckets" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_candidates_of_a_prompt_share_a_bucket_and_its_conditions(tmp_path, name):
    """Each size's latents, conditions and empty prompt are those of a policy that draws that size."""
    wide, high = (sized(16, 40), sized(16, 30, 1)), (sized(20, 40, 2, "JPEG"), sized(40, 20, 3))
    square = (sized(16, 16, 4), sized(17, 16, 5))
    rows = [row(i, media=media) for i, media in enumerate((wide, high, square))]
    parquet.write(tmp_path / "data", rows)
    policy = DiffusionPolicy(zoo.build(name), call=zoo.CALLS[name])
    sizes = [(16, 32), (32, 16), (16, 16)]
    found = rows_of(policy, tmp_path / "data", tmp_path, sizes=sizes)
    for one, (height, width), made in zip(found, sizes, rows, strict=True):
        own = DiffusionPolicy(zoo.build(name), call={**zoo.CALLS[name], "height": height, "width": width})
        cond, null = own.condition([made.prompt]), own.condition([""])
        assert one.x0.shape[1:] == own.latent_shape and one.cond.key == cond.key and one.null.key == null.key
        assert all(torch.equal(one.cond.rows[key], cond.rows[key]) for key in cond.rows)
        x_t, t = torch.randn(2, *own.latent_shape), policy.path.sample_t(2, torch.Generator().manual_seed(0))
        both = collate([one], [0], policy.condition([""])).cond[[0, 0]]
        assert torch.equal(policy.predict(x_t, t, both), own.predict(x_t, t, own.condition([made.prompt] * 2)))
    assert len({one.key for one in found}) == 3
    again = rows_of(policy, tmp_path / "data", tmp_path / "square")
    assert {tuple(one.x0.shape[1:]) for one in again} == {tuple(policy.latent_shape)}


def test_each_process_predicts_at_the_sizes_that_others_encoded(tmp_path, monkeypatch):
    """Rows are shuffled over processes after they were encoded; so are they when nothing is read again."""
    parquet.write(tmp_path / "data", [row(0, media=(sized(16, 40), sized(16, 30, 1)))])
    theirs = {"32 16": (1.0, 1.0)}
    for _ in ("first", "again"):
        policy = DiffusionPolicy(zoo.build("sd15"))
        with monkeypatch.context() as patch:
            patch.setattr(Processes, "sums", lambda self, own: own if "missing" in own else own | theirs)
            rows_of(policy, tmp_path / "data", tmp_path, sizes=[(16, 32), (32, 16), (48, 8)])
        shapes = {tuple(shape[-2:]) for shape in policy.captures}
        assert len(shapes) == 3 and {(h, w) for w, h in shapes} == shapes, "its own size, and two more"


def test_buckets_have_about_one_area():
    sizes = geometry.buckets(1024 * 1024)
    assert (1024, 1024) in sizes and (768, 1344) in sizes and (1344, 768) in sizes
    assert all(0.9 * 2**20 < h * w <= 2**20 and h % 64 == w % 64 == 0 for h, w in sizes)
    assert encoding.sizes_of(None, None) == [] and encoding.sizes_of(None, [[16, 32]]) == [(16, 32)]
    assert geometry.nearest([(100, 200), (100, 150)], sizes) == geometry.nearest([(1000, 1732)], sizes)


def test_rows_take_little_memory_however_many(tmp_path):
    line = {"id": "x", "prompt": "a cat", "media": ["0" * 64] * 2, "cond": "1" * 64, "null": "2", "content": "3" * 64,
            "prefer": [[None, 1.0], [0.0, None]], "votes": [], "scores": [[], []], "weight": 1.0}  # fmt: skip
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(20_000):
            file.write(json.dumps(line | {"id": str(number)}) + "\n")
    import tracemalloc

    tracemalloc.start()
    try:
        with TensorCache(tmp_path / "cache") as kept:
            rows = StoredRows(tmp_path / "rows.jsonl", kept)
            assert len(rows) == 20_000 and rows.labels(12_345).id == "12345" and len(rows.prompts) == 20_000
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 20_000 * 30 + 10**6, held


def test_the_folder_is_the_users_own_unless_one_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("PALATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert caches.default_folder() == tmp_path / "palate"
    monkeypatch.setenv("PALATE_CACHE", str(tmp_path / "own"))
    assert caches.default_folder() == tmp_path / "own"


def test_a_damaged_picture_is_named_alone(tmp_path):
    """Not its row with both files: one of them is good."""
    pair = (Medium("image/png", path="chosen/1.png"), Medium("image/png", path="rejected/1.png"))
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "1.png").write_bytes(b"no picture")
    row = Preference("a", pair, ((float("nan"), 1.0), (0.0, float("nan"))), where="chosen/1.png, rejected/1.png")
    census = encoder.Census(0.0, "pairs")
    assert encoder.decoded(row.media[0], tmp_path, row, census) is None
    assert census.bad[0].startswith("chosen/1.png: not a PNG, JPEG or WebP picture")
