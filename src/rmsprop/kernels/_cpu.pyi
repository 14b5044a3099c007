from collections.abc import Callable, Sequence
from typing import Literal, overload

from rmsprop.kernels.cpu import Group

SCALARS: str
RPROP_SCALARS: str

@overload
def step(groups: Sequence[Group], threads: int, watched: Literal[False] = False, /) -> int: ...
@overload
def step(
    groups: Sequence[Group], threads: int, watched: Literal[True], /
) -> list[tuple[float, float, float, int, int, int]]: ...
def launch(groups: Sequence[Group], kernel: Callable[[bytes, bytes], int], counted_there: bool = False, /) -> int: ...
def supports_v3() -> bool: ...
