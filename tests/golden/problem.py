"""What every library is given: parameters, learning rates and gradients, drawn once and kept in problem.npz.

All numbers are float32, so that float64 runs start from the same ones and libraries that keep the learning rate in
float32 lose nothing of it.
"""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
SHAPES = ((1,), (7,), (3, 4), (2, 3, 2))
ENDS = tuple(np.cumsum([np.prod(shape) for shape in SHAPES]).tolist())
STEPS = 50
#: The steps after which the parameters are recorded.
RECORDED = (1, 2, 3, 5, 10, 20, 30, 40, 50)


def draw() -> dict[str, np.ndarray]:
    """Anew, for problem.npz.

    * start: the parameters, all tensors in a row; lr: a warm-up, a decay and a sudden drop;
    * wild: gradients of 24 orders of magnitude, both within and between entries, a tenth of them 0; the first entry
      of the second tensor never has one, its second from step 20 on, its third until step 10;
    * steady: gradients that vary by a thousandth around a constant, where `v - m^2` cancels;
    * table, rows, row_gradients: two rows of a table a step, and their gradients. The last row has none.
    """
    rng = np.random.default_rng(20121106)
    n = ENDS[-1]
    lr = 0.01 * np.minimum(1, np.arange(1, STEPS + 1) / 5) * 0.97 ** np.arange(STEPS)
    lr[30:] *= 0.1
    wild = rng.normal(size=(STEPS, n)) * 10.0 ** (rng.uniform(-12, 6, size=n) + rng.uniform(-3, 3, size=(STEPS, n)))
    wild[rng.random((STEPS, n)) < 0.1] = 0
    wild[:, 1] = wild[:20, 2] = wild[10:, 3] = 0
    steady = 10.0 ** rng.uniform(-6, 6, size=n) * (1 + 1e-3 * rng.normal(size=(STEPS, n)))
    rows = np.stack([rng.choice(5, 2, replace=False) for _ in range(STEPS)])
    arrays = {
        "start": rng.normal(size=n),
        "lr": lr,
        "wild": wild,
        "steady": steady,
        "table": rng.normal(size=(6, 3)),
        "row_gradients": rng.normal(size=(STEPS, 2, 3)) * 10.0 ** rng.uniform(-6, 3, size=(STEPS, 2, 3)),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()} | {"rows": rows.astype(np.int64)}


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of this folder's file `name`.npz."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def tensors(flat: np.ndarray) -> list[np.ndarray]:
    """Copies of the parts of a row of numbers, in the shapes of the parameters."""
    return [part.reshape(shape).copy() for part, shape in zip(np.split(flat, ENDS[:-1]), SHAPES, strict=True)]


def flat(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in arrays])
