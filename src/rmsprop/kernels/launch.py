"""Launches the kernel of `triton.py`: the tables it reads, on their way to the device.

One has the addresses of all tensors: a row each, as `Entry` of cpu.cpp has them. It stays on the device as long as it
does not change, and most often it does not: an allocator gives the next gradients the memory of the last.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from rmsprop.kernels import cpu
from rmsprop.kernels.triton import BLOCK, ROW, SCALARS, WARPS, step
from rmsprop.rule import Rule

_DTYPES = (tl.float32, tl.float64, tl.float16, tl.bfloat16)  # by the numbers of table.h


class _Part:
    """Rows of one launch: the tables on their device, and what the kernel is compiled for."""

    def __init__(self, device: torch.device, rows: Tensor, blocks: Tensor, constants: dict[str, Any]) -> None:
        self.device, self.rows, self.blocks = device, rows, blocks
        self._constants = {**constants, "row_size": ROW, "set_size": SCALARS, "size": BLOCK}
        self.dithers = constants["state"] == tl.bfloat16 or constants["flags"] & 32
        self._skips = constants["flags"] & 4
        self._compiled: Any = None
        self._skipped = torch.zeros(1, dtype=torch.int64, device=device) if self._skips else rows

    def prepare(self, scalars: Tensor) -> None:
        """All that may fail, before any part is launched."""
        if self._compiled is None and len(self.blocks) and not triton.knobs.runtime.interpret:
            tables, options = (self.rows, scalars, self.blocks, self._skipped), {"num_warps": WARPS}
            grid = len(self.blocks), 1, 1
            with _on(self.device):
                kernel = step.warmup(*tables, **self._constants, **options, enable_fp_fusion=False, grid=grid)
                self._compiled = kernel[grid]  # calling it takes a third of the time of looking it up

    def launch(self, scalars: Tensor) -> int:
        """One launch; the number of entries skipped."""
        if not len(self.blocks):
            return 0
        tables = self.rows, scalars, self.blocks, self._skipped
        with _on(self.device):
            if self._compiled is None:
                step[len(self.blocks),](*tables, **self._constants)
            else:
                self._compiled(*tables, *self._constants.values())
        if not self._skips:
            return 0
        count = int(self._skipped)
        self._skipped.zero_()
        return count


#: What CUDA graphs read at each replay, memory of the host among it; nobody tells when a graph ends.
_READ_BY_GRAPHS: list[Tensor] = []


class Launcher:
    """The steps of one optimizer, which most often have the table of the step before.

    For `launch` of the native module: called with the bytes of rows and scalars, it returns the number of entries
    skipped.
    """

    def __init__(self) -> None:
        self._rows: tuple[bytes, int] = b"", 0
        self._scalars = b""
        self._parts: list[tuple[_Part, Tensor]] = []
        self._blocks: dict[tuple[bytes, torch.device], tuple[int, Tensor]] = {}
        self._spare: list[Tensor] = []  # memory of the host, for a capture, which must not ask for any

    def __call__(self, rows: bytes, scalars: bytes) -> int:
        """A step whose numbers are on the host, as those of step counters are."""
        here = rows, _stream()
        if self._rows != here:
            parts = self._tables(np.frombuffer(rows, np.int64))
        elif self._scalars != scalars:
            parts = [part for part, _ in self._parts]
        else:
            parts = []
        if parts:
            sets = np.frombuffer(bytearray(scalars)).reshape(-1, SCALARS)
            self._parts = [(part, self._uploaded(sets, part.device)) for part in parts]
            self._rows, self._scalars = here, scalars
        self._spare = []
        for part, k in self._parts:
            part.prepare(k)
        return sum(part.launch(k) for part, k in self._parts)

    def captured(
        self, rows: bytes, sets: list[tuple[int, list[Any]]], keys: Callable[[], Tensor], sound: Tensor | None
    ) -> None:
        """A step whose numbers are on the device; nothing waits for it.

        Args:
            rows: the bytes of the rows.
            sets: for so many rows each, the scalars; a tensor has one number, or one for each of these rows.
            keys: makes those of the random numbers of each row.
            sound: whether to make the step at all, one truth value; None for True.
        """
        if not _is_capturing():
            self._spare = []
        table = np.frombuffer(bytearray(rows), np.int64).reshape(-1, ROW + 4)
        table[:, 9] = range(len(table))
        parts = [(part, self._scalars_of_rows(sets, part.device)) for part in self._tables(table)]
        for part, k in parts:
            if part.dithers:
                part.rows[:, 8] = keys()[part.rows[:, 9]]
            if sound is not None:
                part.rows[:, 6] *= sound  # rows of no elements
            part.prepare(k)
        for part, k in parts:
            part.launch(k)

    def _scalars_of_rows(self, sets: list[tuple[int, list[Any]]], device: torch.device) -> Tensor:
        known = [[0.0 if isinstance(x, Tensor) else x for x in values] for count, values in sets for _ in range(count)]
        table, first = self._uploaded(np.array(known, np.float64), device), 0
        for count, values in sets:
            for j, value in enumerate(values):
                if isinstance(value, Tensor):
                    table[first : first + count, j] = value
            first += count
        return table

    def _tables(self, rows: np.ndarray) -> list[_Part]:
        """Rows of one kind each."""
        rows = rows.reshape(-1, ROW + 4)
        kinds, parts = rows[:, ROW:], []
        alike = (kinds == kinds[:1]).all()
        for own in [rows] if alike else [rows[(kinds == kind).all(1)] for kind in np.unique(kinds, axis=0)]:
            dtype, state, flags, number = own[0, ROW:].tolist()
            finfo = torch.finfo(torch.float64 if _DTYPES[dtype] == tl.float64 else torch.float32)
            constants = {"dtype": _DTYPES[dtype], "state": _DTYPES[state], "flags": flags}
            constants |= {"tiny": finfo.tiny, "largest": finfo.max, "aligned": not (own[:, :6] % 16).any()}
            device = _device(number)
            blocks = self._blocks_of(own[:, 6].tobytes(), device)
            parts.append(_Part(device, self._uploaded(own[:, :ROW].copy(), device), blocks, constants))
        return parts

    def _blocks_of(self, counts: bytes, device: torch.device) -> Tensor:
        """(row, number of the block in it) for each program, from the counts of the rows."""
        stream, blocks = self._blocks.get((counts, device), (-1, None))
        if blocks is None or (stream != _stream() and not _is_capturing()):
            number = -(-np.frombuffer(counts, np.int64) // BLOCK)
            which = np.repeat(np.arange(len(number)), number)
            first = np.cumsum(number) - number
            pairs = np.stack([which, np.arange(len(which)) - first[which]], 1)
            blocks = self._uploaded(pairs.astype(np.int32), device)
            if not _is_capturing():  # its memory would be the graph's
                if len(self._blocks) > 8:
                    self._blocks.clear()
                self._blocks[counts, device] = _stream(), blocks
        if _is_capturing():
            _READ_BY_GRAPHS.append(blocks)
        return blocks

    def _uploaded(self, array: np.ndarray, device: torch.device) -> Tensor:
        """A copy on the device that nobody waits for."""
        host = torch.from_numpy(array)
        if device.type == "cuda":
            fits = [i for i, spare in enumerate(self._spare) if _is_capturing() and spare.nbytes == host.nbytes]
            pinned = self._spare.pop(fits[0]).view(host.dtype).view(host.shape) if fits else None
            host = host.pin_memory() if pinned is None else pinned.copy_(host)
            (_READ_BY_GRAPHS if _is_capturing() else self._spare).append(host)
        return host.to(device, non_blocking=True)


def _in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _is_capturing() -> bool:
    return _in_use() and torch.cuda.is_current_stream_capturing()


def _stream() -> int:
    """The stream at hand: what has been copied on another may not be there yet."""
    return int(torch.cuda.current_stream().cuda_stream) if _in_use() else 0


def _device(number: int) -> torch.device:
    """A device from DLPack's type and number of it: CUDA's, ROCm's, or the CPU under Triton's interpreter.

    Raises:
        TypeError: any other.
    """
    kind, index = number >> 32, number & 0xFFFFFFFF
    if kind in (2, 10):
        return torch.device("cuda", index)
    if kind == 1 and triton.knobs.runtime.interpret:
        return torch.device("cpu")
    raise TypeError("this kernel takes tensors on a GPU")


def _on(device: torch.device) -> AbstractContextManager[object]:
    """A block in which launches go to this device."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def try_out() -> None:
    """A step of one number, which raises where Triton cannot compile or launch."""
    rule, x = Rule(), torch.zeros(1, device="cuda")
    state = {"step": torch.zeros(()), "square_avg": torch.zeros_like(x)}
    assert cpu.native is not None
    cpu.native.launch([cpu.Group(*cpu.coefficients(rule), [x], [x.clone()], [state])], Launcher())
