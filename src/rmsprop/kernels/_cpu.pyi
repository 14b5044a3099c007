from collections.abc import Callable

SCALARS: str

def step(
    groups: list[tuple[bytes | Callable[[int], bytes], int, list[object], list[object], list[dict[str, object]], list[str] | None]],
    threads: int,
) -> int: ...
def supports_v3() -> bool: ...
