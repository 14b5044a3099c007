"""The tutorial's `rms_prop`, made to work: `fit` trains a network on a table, `Model` predicts, scores and saves."""

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmsprop.dialects import Default
from rmsprop.training.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rmsprop.training.features import Features
    from rmsprop.training.target import Target

_LR, _BETA, _EPSILON, _MOMENTUM = Default(0.001), Default(0.9), Default(1e-7), Default(0.0)


def fit(
    columns: Any,
    target: Any,
    lr: float = _LR,
    beta: float = _BETA,
    epochs: int = 100,
    epsilon: float = _EPSILON,
    *,
    momentum: float = _MOMENTUM,
    centered: bool | None = None,
    dialect: str = "tutorial",
    cooldown: float = 0.2,
    batch_size: int = 64,
    hidden: tuple[int, ...] = (256, 128),
    init: str = "kaiming",
    seed: int = 0,
    test_size: float = 0.2,
    task: str | None = None,
    drop: tuple[str, ...] = (),
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = False,
) -> "Model":
    r"""Train a multilayer network with RMSprop on columns, and return it with everything it needs to predict.

        v <- beta v + (1 - beta) g^2,    w <- w - lr g / sqrt(v + epsilon)

    Numbers are standardised, gaps filled with the median and marked, texts become one input a value. Some rows are
    held out: they are never trained on and nothing is chosen by them. The same seed gives the same bits on the
    same machine and versions; no global random numbers are used. Under torchrun, or in a process group of
    `torch.distributed`, every process calls it with the same table; they share each batch, and rank 0 writes.

    Args:
        columns: data frame, dict of arrays or 2-D array (its columns are named "0", "1", ...).
        target: a column's name, or an array with one value a row.
        lr, beta, epsilon, momentum, centered: as in `rmsprop.Rule`; one that is given wins over the dialect's.
        epochs: passes over the training rows, at least 1.
        dialect: whose rule and defaults to use (`rmsprop.DIALECTS`); the tutorial's has epsilon inside the root.
        cooldown: the last part of the training, 0 to 1, over which the step size falls from lr to 0: at full size the
            weights would go on jumping about their goal. 0 keeps lr constant.
        batch_size: rows a step.
        hidden: widths of the hidden layers, at most 32 of at most 16384; () is a linear model.
        init: "kaiming", or "zeros", "huge" or "tiny" to see what goes wrong.
        seed: of the split, the weights and the order of the rows; 0 to 2**32 - 1.
        test_size: the part of the rows held out, between 0 and 1; classes keep their proportions.
        task: "classification" or "regression"; None takes classification for texts, booleans and whole numbers with
            at most 20 different values.
        drop: columns to leave out.
        out: a new folder to keep the run in, with checkpoints and a report; None keeps nothing.
        resume: the folder of a run on these columns to go on with; it has its own options, so give no others.
        progress: show a bar (on a terminal) or a few lines on standard error.

    Raises:
        ValueError: an option outside its range, or a table that cannot be learned from; names option or column.
        FloatingPointError: the loss became infinite or NaN.
        KeyboardInterrupt: stopped by Ctrl-C; with `out`, after saving, and `resume` goes on.

    Example:
        >>> import numpy as np, rmsprop
        >>> x = np.linspace(-1, 1, 200)
        >>> model = rmsprop.fit({"x": x, "square": x**2}, "square", epochs=30, batch_size=8)
        >>> model.task, model.score({"x": x}, x**2) > 0.95
        ('regression', True)
    """
    options: dict[str, Any] = {"lr": lr, "beta": beta, "epsilon": epsilon, "momentum": momentum, "centered": centered}
    options |= {"dialect": dialect, "epochs": epochs, "batch_size": batch_size, "hidden": hidden, "init": init}
    options |= {"cooldown": cooldown, "seed": seed, "test_size": test_size, "task": task, "drop": drop}
    job = _part("job")
    if resume is None:
        places = None if out is None else [Path(out)]
        model: Model = job.start(columns, target, Settings.of(**options), out=places, progress=progress)
        return model
    for name, value in {**options, "out": out}.items():
        if value != DEFAULTS[name]:
            raise ValueError(f"{name}={value!r}: expected nothing beside resume, whose run has its own options")
    resumed: Model = job.resume(Path(resume), columns, target, progress=progress)
    return resumed


#: The default of every option of `fit`.
DEFAULTS = {name: parameter.default for name, parameter in signature(fit).parameters.items()}


def _part(name: str) -> Any:
    """A module of `rmsprop.training`, imported when it is first used: it brings torch and pandas with it."""
    try:
        return import_module(f"rmsprop.training.{name}")
    except ModuleNotFoundError as error:
        missing = f'rmsprop.fit needs {error.name}: pip install "rmsprop[train]"'
        raise ModuleNotFoundError(missing, name=error.name) from error


class Model:
    """A trained network with its preprocessing and the record of its run. `rmsprop.fit` makes it, `load` reads it.

    Attributes:
        network: the torch module; (rows, inputs) to (rows, classes) logits or (rows, 1) standardised.
        features: the fitted preprocessing.
        target: name, task and classes of what is predicted.
        config: what the run was: options, rule, data, versions.
        history: one dict an epoch: epoch, train_loss, test_loss, test_score, seconds, optimizer_seconds.
        result: final scores and times.
        folder: where the run is kept, or None.
        layers: how the steps of each parameter went: epoch, layer (the parameter's name) and what
            `rmsprop.torch.RMSprop.stats` says of the last step of that epoch; None where it has no finite value.

    Example:
        >>> import numpy as np, rmsprop
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> model = rmsprop.fit(x, np.where(x[:, 0] > 0, "right", "left"), epochs=30)
        >>> model.predict([[2.0, 0.0], [-2.0, 0.0]]).tolist()
        ['right', 'left']
        >>> model.predict_proba([[2.0, 0.0]]).shape, model.classes
        ((1, 2), ('left', 'right'))
    """

    def __init__(
        self,
        network: "torch.nn.Module",
        features: "Features",
        target: "Target",
        config: dict[str, Any],
        history: list[dict[str, float]],
        result: dict[str, Any],
        folder: Path | None = None,
        layers: list[dict[str, Any]] | None = None,
    ) -> None:
        self.network, self.features, self.target, self.folder = network, features, target, folder
        self.layers = layers or []
        self.config, self.history, self.result = config, history, result

    def __repr__(self) -> str:
        score = self.result["test_score"]
        return f"<rmsprop.Model: {self.task} of {self.target.name!r}, test {self.target.score_name} {score:.4f}>"

    @property
    def task(self) -> str:
        """Either "classification" or "regression"."""
        return self.target.task

    @property
    def classes(self) -> tuple[Any, ...] | None:
        """The classes in the order of `predict_proba`'s columns; None for regression."""
        return self.target.classes

    def predict(self, columns: Any) -> "np.ndarray":
        """The predicted classes or numbers, in the target's own units; shape (rows,).

        Args:
            columns: as `fit` takes them; other columns than the model's are ignored.

        Raises:
            ValueError: a column is missing or holds values of another kind; names it.
        """
        result: np.ndarray = _part("predicting").predict(self, columns)
        return result

    def predict_proba(self, columns: Any) -> "np.ndarray":
        """The probability of each class, shape (rows, classes); rows sum to 1.

        Raises:
            ValueError: as `predict`; also for a regression, which has no classes.
        """
        result: np.ndarray = _part("predicting").probabilities(self, columns)
        return result

    def score(self, columns: Any, target: Any) -> float:
        """Accuracy of a classification, R² of a regression.

        Args:
            columns: as `predict` takes them.
            target: a column's name, or an array with one value a row.
        """
        result: float = _part("predicting").score(self, columns, target)
        return result

    def save(self, folder: str | Path) -> Path:
        """Write the run folder that `load` and `rmsprop predict` read, report included. Never overwrites.

        Raises:
            ValueError: the folder exists.
        """
        new: Path = _part("run").create([Path(folder)], self.config, self.features)
        _part("job").finish(self, new)
        return new

    @classmethod
    def load(cls, folder: str | Path) -> "Model":
        """Read a finished run. Checks every byte against its checksum, and executes nothing from it.

        Raises:
            ValueError: no run, an unfinished one, or a damaged file; names it.
        """
        model: Model = _part("predicting").load(Path(folder))
        return model
