"""How `dialect="modern"` was chosen: variants of RMSprop with averaged weights, judged on validation rows alone.

    python benchmarks/search.py                         # all variants on all problems: hours on one core
    python benchmarks/search.py --problems digits,mnist1d --variants "momentum 0.7, clip 2" "momentum 0.9, clip 1"

Seeds are not those of benchmarks/quality.py. Each line: the validation loss over that of the best Adam, with the best
learning rate and with 0.01. --decay judges the variants without averaging, their learning rate falling to 0.
"""

import argparse
from typing import Any

import torch

from rmsprop.comparing.builtin import BUILTIN
from rmsprop.comparing.candidates import CANDIDATES, Candidate
from rmsprop.comparing.sweep import sweep
from rmsprop.torch import RMSprop

SEEDS = [100, 101, 102, 103]
VARIANTS: dict[str, dict[str, Any]] = {"corrected": {}}
VARIANTS |= {f"momentum {m}, clip {c}": {"momentum": m, "clip": c} for m in (0.5, 0.7, 0.8, 0.9) for c in (1, 2)}
BASE = {"momentum": 0.7, "clip": 2}
VARIANTS |= {"no momentum, clip 1": {"clip": 1}, "momentum 0.9": {"momentum": 0.9}}
VARIANTS |= {f"clip {c}": {**BASE, "clip": c} for c in (1.5, 3)}
VARIANTS |= {f"alpha {a}": {**BASE, "alpha": a} for a in (0.98, 0.995, 0.999)}
VARIANTS |= {f"decay {w}": {**BASE, "weight_decay": w, "decoupled_weight_decay": True} for w in (0.01, 0.1)}
VARIANTS |= {"Nesterov": {**BASE, "nesterov": True}}


def candidate(name: str, decay: bool) -> Candidate:
    options = {"bias_correction": True, "momentum_form": "ema", "averaging": not decay, **VARIANTS[name]}
    return Candidate(name, "", lambda p, lr: RMSprop(p, lr=lr, **options), averaging=not decay)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(BUILTIN), help="with commas (default: all)")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--decay", action="store_true", help="no averaging; the learning rate falls to 0")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for problem in (BUILTIN[name]() for name in options.problems.split(",")):
        base = min(sweep(problem, CANDIDATES["adam"], SEEDS, options.decay).curves.finals())
        for name in options.variants:
            curves = sweep(problem, candidate(name, options.decay), SEEDS, options.decay).curves
            ratios = {lr: x / base for lr, x in zip(curves.lrs, curves.finals(), strict=True)}
            best = min(ratios, key=ratios.__getitem__)
            print(
                f"{problem.name:14} {name:24} {ratios[best]:.3f} at {best:g}   {ratios[0.01]:.3f} at 0.01", flush=True
            )


if __name__ == "__main__":
    main()
