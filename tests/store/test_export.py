"""What leaves a project is the same for the same snapshot, on both databases, while raters go on."""

from __future__ import annotations

from palate.datasets import parquet
from palate.doors import giving
from tests.store.make import filled


def test_an_export_beside_a_studio(opened, tmp_path, capsys):
    store = filled(opened(), 3, 2)
    raters = [store.add_rater(name)[0] for name in ("ada", "bo")]

    def vote(rater: str, number: int) -> None:
        (lease,) = store.lease(rater, 1)
        brighter = max(lease.samples, key=lambda sample: int(sample.id[1:]))
        side = "left" if lease.samples[0] is brighter else "right"
        assert store.answer(rater, lease.id, f"k{number}", {"overall": side}).status == "saved"

    for number in range(2):
        vote(raters[0], number)
    giving.export(store.folder, tmp_path / "first")
    taken = capsys.readouterr().out.split("snapshot ")[1].split(":")[0]
    vote(raters[1], 0)
    store.undo(raters[0], "u")
    giving.export(store.folder, tmp_path / "again", snapshot=taken)
    giving.export(store.folder, tmp_path / "later")
    first, again, later = (sorted((tmp_path / name).iterdir()) for name in ("first", "again", "later"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert [path.name for path in first] == ["manifest.json", "part-00000.parquet", "snapshot.json"]
    assert first[1].read_bytes() != later[1].read_bytes()
    for name in ("first", "later"):  # samples in order of arrival: the second of each pair is the brighter
        rows = list(parquet.read(tmp_path / name))
        assert rows and all(row.prefer[1][0] == 1.0 for row in rows)
