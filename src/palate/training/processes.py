"""The processes of a run: who I am, and sums over all. Started by torchrun or accelerate, joined through accelerate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from palate.remote import RemoteError, Unavailable

# Some wait for others while these encode, judge or write for hours; the ten minutes that are usual would end the run.
# If one fails, whatever started them ends them all at once.
_PATIENCE = timedelta(days=2)
Sums = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Processes:
    """This process's place among `world`; with a world of 1 every method does nothing."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mine(self, index: Tensor) -> Tensor:
        """This process's share of rows, by position: every row belongs to exactly one process."""
        return index[self.rank :: self.world]

    def add_up(self, parts: Sequence[Tensor]) -> None:
        """Adds up over processes, in place: one all-reduce for all of the tensors."""
        if self.world == 1:
            return
        flat = torch.cat([part.flatten().float() for part in parts])
        dist.all_reduce(flat)
        for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))

    def sums(self, local: Sums) -> Sums:
        """(sum, count) by name, added up over processes; a process may lack names that others have."""
        if self.world == 1:
            return local
        gathered: list[Sums] = [{}] * self.world
        dist.all_gather_object(gathered, local)
        names = sorted({name for sums in gathered for name in sums})
        return {
            name: tuple(sum(sums.get(name, (0.0, 0.0))[i] for sums in gathered) for i in (0, 1))  # type: ignore[misc]
            for name in names
        }

    def collect(self, rows: Tensor, index: Tensor, total: int, device: torch.device) -> Tensor:
        """All `total` rows of a tensor [total, ...] of which each process has those of its `index`."""
        if self.world == 1:
            return rows
        out = torch.zeros(total, *rows.shape[1:], dtype=rows.dtype, device=device)
        out[index.to(device)] = rows.to(device)
        dist.all_reduce(out)
        return out.to(rows.device)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails in the block for one process, for want of a service, fails in all: none is left waiting."""
        failed: RemoteError | None = None
        try:
            yield
        except RemoteError as error:
            failed = error
        told: list[tuple[bool, str] | None] = [(isinstance(failed, Unavailable), str(failed)) if failed else None]
        if self.world > 1:
            told *= self.world
            dist.all_gather_object(told, told[0])
        if failed is not None:
            raise failed
        for elsewhere in told:
            if elsewhere is not None:
                raise (Unavailable if elsewhere[0] else RemoteError)(elsewhere[1])

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            dist.barrier()

    def tell(self, message: str | None) -> str | None:
        """The first process's message, in all processes."""
        if self.world == 1:
            return message
        box = [message]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def join(device: torch.device) -> Processes:
    """Joins the processes that were started together (torchrun sets WORLD_SIZE); alone, there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Processes()
        from accelerate import PartialState

        PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
    return Processes(dist.get_rank(), dist.get_world_size())
