"""The one table of rules, shapes and gradients that every engine is held to."""

from itertools import product

import numpy as np

from rmsprop import DIALECTS, Rule

OPTIONS: dict[str, dict] = {
    "plain": {},
    "outside": {"epsilon_mode": "outside"},
    "floor": {"epsilon_mode": "floor", "epsilon": 3.0},
    "both": {"epsilon_mode": "both", "epsilon": 1e-3},
    "no epsilon": {"epsilon": 0.0},
    "beta 0": {"beta": 0.0},
    "starts at 1": {"initial_square": 1.0},
    "centered": {"centered": True},
    "centered, floor": {"centered": True, "variance_floor": 20.0, "epsilon": 0.0},
    "corrected": {"bias_correction": True, "beta": 0.99},
    "corrected, centered": {"bias_correction": True, "centered": True, "beta": 0.99, "epsilon_mode": "outside"},
    "momentum": {"momentum": 0.9},
    "momentum inside": {"momentum": 0.9, "momentum_form": "lr_inside"},
    "momentum ema": {"momentum": 0.9, "momentum_form": "ema", "bias_correction": True},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "nesterov inside": {"momentum": 0.9, "nesterov": True, "momentum_form": "lr_inside"},
    "nesterov ema": {"momentum": 0.9, "nesterov": True, "momentum_form": "ema", "bias_correction": True},
    "decay": {"weight_decay": 0.1},
    "decay decoupled": {"weight_decay": 0.1, "decay_mode": "decoupled"},
    "clip": {"clip": 0.5},
    "clip weights": {"clip_weights": 0.3},
    "maximize": {"maximize": True},
    "skip": {"nonfinite": "skip"},
    "everything": {
        "lr": 0.01,
        "centered": True,
        "variance_floor": 20.0,
        "bias_correction": True,
        "momentum": 0.9,
        "momentum_form": "ema",
        "nesterov": True,
        "weight_decay": 0.1,
        "decay_mode": "decoupled",
        "clip": 2.0,
        "clip_weights": 0.9,
        "maximize": True,
        "nonfinite": "skip",
        "epsilon_mode": "both",
    },
}
RULES = {name: Rule(**options) for name, options in OPTIONS.items()}
RULES |= {f"dialect {name}": row.rule for name, row in DIALECTS.items()}


def combinations() -> dict[str, Rule]:
    """Each combination of what a native loop is compiled for."""
    flags = {
        "centered": {"centered": True},
        "momentum": {"momentum": 0.9},
        "skip": {"nonfinite": "skip"},
        "decay": {"weight_decay": 0.1},
        "clips": {"clip": 0.5, "clip_weights": 0.9, "bias_correction": True, "maximize": True},
    }
    found = {}
    for chosen in product((False, True), repeat=len(flags)):
        names = [name for name, on in zip(flags, chosen, strict=True) if on]
        found[", ".join(names) or "none"] = Rule(**{k: x for name in names for k, x in flags[name].items()})
    return found


COMBINATIONS = combinations()

#: Lengths around the vector widths and block sizes: tails of every kind.
LENGTHS = (0, 1, 3, 8, 17, 513, 2000)
DTYPES = (np.float16, np.float32, np.float64)


def parameter(n: int, dtype: type, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n).astype(dtype)


def gradients(n: int, dtype: type, steps: int = 5, seed: int = 1) -> list[np.ndarray]:
    """Gradients over many orders of magnitude, with zeros, squares that overflow, and squares that vanish."""
    rng = np.random.default_rng(seed)
    low, high = {np.float16: (-6, 4), np.float32: (-30, 22), np.float64: (-180, 170)}[dtype]
    grads = []
    for _ in range(steps):
        with np.errstate(over="ignore"):
            g = (rng.normal(size=n) * 10.0 ** rng.integers(low, high, size=n)).astype(dtype)
        g[rng.random(n) < 0.1] = 0
        grads.append(g)
    return grads


def special(dtype: type) -> np.ndarray:
    """Awkward numbers, for parameters, gradients and state."""
    finfo = np.finfo(dtype)
    return np.array([0.0, -0.0, 1.0, -1.0, finfo.tiny, -finfo.tiny / 2, finfo.max, np.inf, -np.inf, np.nan], dtype)
