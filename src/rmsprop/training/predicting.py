"""A trained model at work on new columns, and read back from its folder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmsprop.fit import Model
from rmsprop.training import run
from rmsprop.training.loop import outputs, score_of
from rmsprop.training.network import build
from rmsprop.training.settings import Settings, hint
from rmsprop.training.sheet import apart
from rmsprop.training.table import frame_of, listed, values_of
from rmsprop.training.target import Target


def load(folder: Path) -> Model:
    """`Model.load`."""
    config = run.read_config(folder)
    weights, facts = run.load_model(folder, config["sha256"])
    settings, target = Settings.from_json(config["settings"]), Target.from_json(config["target"])
    features = run.read_features(folder, config)
    network = build(features.width, settings.hidden, target.outputs, "zeros", settings.seed)
    network.load_state_dict(weights)
    history, result, layers = facts["history"], facts["result"], facts.get("layers", [])  # older runs have none
    return Model(network, features, target, config, history, result, folder, layers)


def predict(model: Model, columns: Any) -> np.ndarray:
    """`Model.predict`."""
    output = _outputs(model, columns).double().numpy()
    if model.classes is None:
        numbers: np.ndarray = output[:, 0] * model.target.scale + model.target.mean
        return numbers
    classes: np.ndarray = np.asarray(model.classes)[output.argmax(1)]
    return classes


def probabilities(model: Model, columns: Any) -> np.ndarray:
    """`Model.predict_proba`."""
    if model.classes is None:
        raise ValueError("predict_proba: this model is a regression; expected a classification")
    return _outputs(model, columns).double().softmax(1).numpy()


def score(model: Model, columns: Any, target: Any) -> float:
    """`Model.score`."""
    frame, column = apart(frame_of(columns), target)
    missing = int(column.isna().sum())
    if missing:
        raise ValueError(f"target: {missing} of {len(column)} values are missing; expected all of them")
    return score_of(_outputs(model, frame), torch.from_numpy(model.target.codes(column)))


def _outputs(model: Model, columns: Any) -> torch.Tensor:
    """The network's output for a table, shape (rows, outputs)."""
    frame, kinds = frame_of(columns), model.features.kinds
    for name in kinds:
        if name not in frame:
            near = hint(name, tuple(frame.columns))
            raise ValueError(
                f"columns: {name!r} is missing{near}; expected the columns of the training: {listed(kinds)}"
            )
    values = {name: values_of(frame[name], kind) for name, kind in kinds.items()}
    return outputs(model.network, torch.from_numpy(model.features.transform(values)))
