from collections.abc import Callable

_Scalars = bytes | Callable[[int], bytes]
_Group = tuple[_Scalars, int, list[object], list[object], list[dict[str, object]], list[str] | None]

SCALARS: str

def step(groups: list[_Group], threads: int, /) -> int: ...
def supports_v3() -> bool: ...
