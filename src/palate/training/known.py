"""The reference's errors at draws that come again, computed once: training then needs no reference, nor its passes.

A row has n draws, and its visit v gets draw v mod n. Each is asked for in the micro-batch in which training will first
come to it, so that the first n epochs see the very numbers that a live reference would give; later ones, in which rows
stand beside others, see them to rounding. What a killed process had computed is not computed again.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from palate import durable, likelihood
from palate.config import TrainingSettings
from palate.models.contracts import Draw, PreferenceBatch
from palate.models.identity import digest_of
from palate.training import adapters, optimisation
from palate.training.logs import Progress
from palate.training.offline import Chosen, Offline

_EVERY_S = 60.0  # between savings of what has been computed so far
_LOOKED_AT = 8  # rows whose latents, conditions and draws are part of what stored errors are known by


class KnownErrors:
    """Log-likelihoods [rows, draws, K] by salt: of training (""), of held-out rows, of those surveyed."""

    def __init__(self, tables: dict[str, Tensor] | None = None) -> None:
        """tables: `{salt}logps` [rows, draws, K] and `{salt}done` [rows, draws]."""
        self.tables = tables or {}

    def put(self, salt: str, places: Chosen, logps: Tensor, rows: int, draws: int) -> None:
        """Notes logps [B, K] of places (row, draw); rows, draws: how many there are in all."""
        row, draw = torch.tensor(places).unbind(1)
        self._put(salt, row, draw, logps, rows, draws)

    def _put(self, salt: str, row: Tensor, draw: Tensor, logps: Tensor, rows: int, draws: int) -> None:
        k = logps.shape[1]
        held = self.tables.get(f"{salt}logps")
        if held is None:
            held = torch.zeros(rows, draws, k)
            self.tables[f"{salt}done"] = torch.zeros(rows, draws, dtype=torch.bool)
        self.tables[f"{salt}logps"] = held = F.pad(held, (0, max(0, k - held.shape[2])))
        held[row, draw, :k] = logps.float().cpu()
        self.tables[f"{salt}done"][row, draw] = True

    def get(self, salt: str, places: Chosen, k: int) -> Tensor:
        """[B, k] of places (row, draw). Raises LookupError for one that was never computed."""
        row, draw = torch.tensor(places).unbind(1)
        if not bool(self.tables[f"{salt}done"][row, draw].all()):
            raise LookupError("the reference's error is not known for one of these rows: begin the run anew")
        found = self.tables[f"{salt}logps"][row, draw]
        return F.pad(found, (0, max(0, k - found.shape[1])))[:, :k]

    def has(self, salt: str, places: Chosen) -> bool:
        row, draw = torch.tensor(places).unbind(1)
        done = self.tables.get(f"{salt}done")
        return done is not None and bool(done[row, draw].all())

    def merge(self, other: KnownErrors) -> None:
        """Adds what another process has computed."""
        for name, done in other.tables.items():
            if name.endswith("done"):
                row, draw = done.nonzero().unbind(1)
                logps = other.tables[f"{name.removesuffix('done')}logps"][row, draw]
                self._put(name.removesuffix("done"), row, draw, logps, *done.shape)


def precompute(
    policy: Any,
    reference: Any,
    source: Offline,
    settings: TrainingSettings,
    folder: Path,
) -> None:
    """Gives the source the reference's errors at all draws that recur, from the folder where they lie already.

    reference: the policy itself will do, before it is trained. They are kept in `folder`, and thrown away if another
    reference, other data, other draws or another batch made them.
    """
    processes = source.processes
    made_of, path = _made_of(policy, source, settings), folder / f"reference-{processes.rank}.safetensors"
    known = _load(path, made_of) or KnownErrors()
    missing = sum(not known.has(*step) for step in source.recurring())
    bar = Progress(missing, 0, shown=processes.first and missing > 0, what="reference batch")
    saved = time.monotonic()
    with contextlib.closing(bar):
        for salt, chosen in source.recurring():
            if known.has(salt, chosen):
                continue
            for places, (batch, draw) in source.placed(chosen, salt):
                logps = ask(reference, batch, draw, settings)
                known.put(salt, places, logps, len(source.prompts), source.draws(salt))
            bar.advance(1)
            if time.monotonic() - saved > _EVERY_S:
                _save(path, known, made_of)
                saved = time.monotonic()
    if missing:
        _save(path, known, made_of)
    processes.wait()  # until all have written theirs
    for rank in range(processes.world):
        if rank != processes.rank:
            theirs = _load(folder / f"reference-{rank}.safetensors", made_of)
            if theirs is None:
                raise durable.StorageError(f"{folder}: the errors that process {rank} computed cannot be read")
            known.merge(theirs)
    source.known = known


@torch.no_grad()
def ask(reference: Any, batch: PreferenceBatch, draw: Draw, settings: TrainingSettings) -> Tensor:
    """The reference's log-likelihoods [B, K], in the precision of training."""
    with optimisation.autocast(settings, batch.x0.device):
        return likelihood.denoising(reference, batch.x0, batch.cond.where(draw.drop, batch.null), draw)


def _made_of(policy: Any, source: Offline, settings: TrainingSettings) -> str:
    """A digest of the reference's weights, of the rows, of their draws, and of how they are put into batches."""
    modules = adapters.modules_of(policy)
    tensors = {
        f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()
    }
    tensors |= source.made_of
    few = [(row, 0) for row in source.train_rows[:_LOOKED_AT]]
    for number, (_, (batch, draw)) in enumerate(source.placed(few, "")):
        tensors |= {f"draw {number} {name}": value for name, value in vars(draw).items()}
        tensors |= {f"x0 {number}": batch.x0} | {f"{number} {name}": value for name, value in batch.cond.rows.items()}
    how = (
        settings.batch_size,
        settings.micro_batch_size,
        settings.mixed_precision,
        source.draws(),
        source.drop,
        source.processes.world,
    )
    return digest_of(tensors, *how, batch.x0.device.type)


def _save(path: Path, known: KnownErrors, made_of: str) -> None:
    aside = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(known.tables, aside, metadata={"made_of": made_of})
        durable.fsync(aside)
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):  # half of it would only fill the disk
            aside.unlink()
        raise durable.StorageError(durable.explained(error, path, 0) or str(error)) from error


def _load(path: Path, made_of: str) -> KnownErrors | None:
    """What lies there, None if it was made of something else."""
    try:
        with safe_open(path, "pt") as file:
            names: list[str] = list(file.keys())
            tables = {name: file.get_tensor(name) for name in names}
            return KnownErrors(tables) if (file.metadata() or {}).get("made_of") == made_of else None
    except (OSError, SafetensorError):
        return None
