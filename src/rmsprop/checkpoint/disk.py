"""Writing that survives a kill at any moment, and what readers of damaged files say.

A file is written under a temporary name in the same folder, synced, renamed over the old one, and the folder synced:
after a crash there is the old file or the new one, never half of one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Replace the file at once and for good."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Turns whatever a parser raises for a damaged file into one ValueError that names it."""
    try:
        yield
    except (ImportError, MemoryError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: damaged, or of another kind: {what}") from None
