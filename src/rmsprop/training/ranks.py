"""The processes that train one network together: torchrun starts them, rank 0 leads, the others follow in silence.

Every rank takes its share of each batch. What only one of them does or learns (a folder, a Ctrl-C, an error) is told to
all at the same point of the job, so that none waits for another that has gone.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class RankError(ValueError):
    """What went wrong on another rank; the message says which and what."""


@dataclass(eq=False)
class Ranks:
    """This process among those of the job: its number, how many they are, and their process group."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes, shows and prints."""
        return self.rank == 0

    def share(self, rows: "torch.Tensor") -> "torch.Tensor":
        """This rank's part of a batch; the parts differ by at most one row, and of a tiny batch some are empty."""
        return rows if self.size == 1 else rows.tensor_split(self.size)[self.rank]

    def parallel(self, network: "torch.nn.Module") -> "torch.nn.Module":
        """The network, with gradients that are the mean over the ranks."""
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(network, process_group=self.group)

    def threads(self, wanted: int) -> int:
        """So many threads for this process that all those on this machine find room on its cores."""
        if self.size == 1:
            return wanted
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        return min(wanted, max(1, (os.cpu_count() or 1) // here))

    def sum(self, value: float) -> float:
        """The sum over the ranks, the same bits on each."""
        return self._reduced(value, "SUM")

    def most(self, value: int) -> int:
        """The largest over the ranks."""
        return int(self._reduced(value, "MAX"))

    def together(self, action: Callable[[], T]) -> T:
        """The result of what every rank does by itself. An error on one is an error on all.

        Raises:
            RankError: it failed on another rank, and not on this one.
        """
        if self.size == 1:
            return action()
        try:
            result = action()
        except BaseException as error:
            self._gathered(str(error) or type(error).__name__)
            raise
        for rank, text in enumerate(self._gathered(None)):
            if text is not None:
                raise RankError(f"rank {rank}: {text}")
        return result

    def lead(self, action: Callable[[], T]) -> T:
        """What rank 0 does for all: each gets its result, or its error as `together` raises it."""
        if self.size == 1:
            return action()
        from torch.distributed import broadcast_object_list

        told = [self.together(action if self.leads else lambda: None)]
        broadcast_object_list(told, group=self.group, group_src=0)
        return told[0]  # type: ignore[return-value]

    def same(self, name: str, value: Any) -> None:
        """Refuse to go on unless the value is the same everywhere."""
        values = [value] if self.size == 1 else self._gathered(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ValueError(f"{name}: others on rank {rank} than on rank 0; expected the same on every rank")

    def _gathered(self, value: Any) -> list[Any]:
        from torch.distributed import all_gather_object

        values = [None] * self.size
        all_gather_object(values, value, group=self.group)
        return values

    def _reduced(self, value: float, operation: str) -> float:
        if self.size == 1:
            return value
        import torch
        from torch.distributed import ReduceOp, all_reduce

        total = torch.tensor(value, dtype=torch.float64)
        all_reduce(total, getattr(ReduceOp, operation), group=self.group)
        return total.item()


#: No other process: what everything is without torchrun.
ALONE = Ranks()


def launched() -> tuple[int, int]:
    """(rank, number of processes), as torchrun tells the processes it starts; (0, 1) in any other."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this job while it lasts, by gloo. A process group that is there already stays as it is.

    Raises:
        ConnectionError: another rank's process has ended.
    """
    from torch import distributed

    # A group that is there may be of another kind, and busy: it gets a second one beside it.
    theirs = distributed.is_available() and distributed.is_initialized()
    if (distributed.get_world_size() if theirs else launched()[1]) == 1:
        yield ALONE
        return
    if not theirs:
        _start_group()
    group = distributed.new_group(backend="gloo") if theirs else distributed.group.WORLD
    ranks = Ranks(distributed.get_rank(group), distributed.get_world_size(group), group)
    try:
        yield ranks
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        raise ConnectionError("the process of another rank has ended") from error
    finally:
        distributed.destroy_process_group(group)
        ranks.group = group = None  # gloo's threads end with the last reference; at Python's end they would abort it


def _start_group() -> None:
    """Make torch's process group, from what torchrun says in the environment."""
    # Its functions' defaults keep the group there is when it is first imported, which DDP does, for ever.
    import torch.distributed.nn.functional  # noqa: F401
    from torch.distributed.distributed_c10d import PrefixStore, init_process_group
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    number = store.add(f"rmsprop/{rank}", 1)  # what an earlier group has left in the store would mislead the next one
    init_process_group("gloo", store=PrefixStore(f"rmsprop/{number}", store), rank=rank, world_size=size)
