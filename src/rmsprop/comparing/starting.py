"""Starting a comparison, and going on with one."""

from pathlib import Path
from typing import Any

import torch

from rmsprop.compare import Comparison
from rmsprop.comparing.plan import Plan, whole
from rmsprop.comparing.running import Job
from rmsprop.comparing.sources import Memory, source_from, source_of
from rmsprop.comparing.sweep import CONFIG, read

MOST_THREADS = 4096  # of torch that a damaged folder may ask for


def start(
    problem: Any,
    target: Any,
    options: dict[str, Any],
    *,
    out: str | Path | None = None,
    kept: bool = False,
    progress: bool = False,
) -> Comparison:
    """A new comparison.

    Args:
        problem, target, out, progress: as `rmsprop.compare` has them.
        options: the rest of its arguments.
        kept: without `out`, keep it in the first folder that is free.
    """
    options = dict(options)
    source = source_of(problem, target, options.pop("problems"), options["fast"])
    plan = Plan.of(**options)
    folder = None if out is None else Path(out)
    return Job(source, plan, folder, torch.get_num_threads(), progress, kept).run()


def resume(folder: Path, problem: Any = None, target: Any = None, *, progress: bool = False) -> Comparison:
    """Go on with a comparison; what it comes to is what it would have come to without a stop.

    Raises:
        ValueError: no folder of a comparison, or its problem, data or versions have changed; nothing is written then.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: no folder of a comparison: it has no {CONFIG}")
    settings = read(folder / CONFIG)
    try:
        plan, threads, source = Plan.from_json(settings), settings["threads"], source_from(settings["source"])
        whole("threads", threads, MOST_THREADS)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{folder / CONFIG}: damaged or of another version: {said}") from error
    if source is None:
        if problem is None:
            name = settings["source"].get("name")
            raise ValueError(f"{folder}: its problem was in memory; expected rmsprop.compare({name}, resume=...)")
        source = source_of(problem, target, None, False)
        if not isinstance(source, Memory):
            raise ValueError(f"{folder}: its problem was in memory; expected that function or table")
    elif problem is not None or target is not None:
        raise ValueError(f"problem={problem!r}: expected nothing beside resume={str(folder)!r}, which has its own")
    return Job(source, plan, folder, threads, progress).run()
