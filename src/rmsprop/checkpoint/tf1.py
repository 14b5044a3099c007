"""TensorFlow 1's RMSPropOptimizer: slots named after the variable and the optimizer.

A slot is called `<variable>/RMSProp`, and further ones `_1`, `_2`, in the order in which they are made: rms, mg
(centered only), momentum. Source: tensorflow 2.21, python/training/rmsprop.py (_create_slots) and slot_creator.py.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmsprop.checkpoint import slots
from rmsprop.checkpoint.form import Checkpoint, Group, array
from rmsprop.checkpoint.libraries import rule_of
from rmsprop.checkpoint.slots import Array
from rmsprop.checkpoint.torch import whole

_ORDER = {2: ("square_avg", "momentum_buffer"), 3: ("square_avg", "grad_avg", "momentum_buffer")}


def from_tf1(
    arrays: Mapping[str, Any], *, name: str = "RMSProp", step: int | None = None, strict: bool = True, **options: Any
) -> Checkpoint:
    """Read a TensorFlow 1 checkpoint, as a dict of all its arrays.

    `r = tf.train.load_checkpoint(path); arrays = {n: r.get_tensor(n) for n in r.get_variable_to_shape_map()}` makes it.

    Args:
        arrays: what has no slots is left out.
        name: the optimizer's, `tf.train.RMSPropOptimizer(name=...)`, with the name scope before it if it had one.
        step: how many steps have been made; None takes the array `global_step`.
        strict: refuse state that no step could have left.
        **options: those given to `tf.train.RMSPropOptimizer`; `learning_rate` is that of the next step. The
            checkpoint has none; `momentum` must be given where the momentum slots are not all 0.

    Raises:
        ValueError: no slots, an option that is missing or does not fit; names it.
    """
    pattern = re.compile(rf"(?P<variable>.+)/{re.escape(name)}(?:_(?P<number>[12]))?")
    found: dict[str, dict[int, Array]] = {}
    for key, value in arrays.items():
        if match := pattern.fullmatch(key):
            found.setdefault(match["variable"], {})[int(match["number"] or 0)] = array(value)
    counts = {tuple(sorted(numbers)) for numbers in found.values()}
    if len(counts) != 1 or (several := counts.pop()) not in ((0, 1), (0, 1, 2)):
        raise ValueError(
            f"{name}: expected 2 slots of this name for each variable, or 3 if centered; found {found.keys()}"
        )
    order, centered = _ORDER[len(several)], len(several) == 3
    if bool(options.get("centered", centered)) != centered:
        raise ValueError(f"centered={options['centered']!r}: there are {len(several)} slots for each variable")
    moving = any(numbers[len(several) - 1].any() for numbers in found.values())
    if moving and options.get("momentum") is None and strict:
        raise ValueError(
            "momentum is not in the checkpoint, which has momentum slots: give momentum=... (0 if it had none)"
        )
    rule, notes = rule_of("tf1", {"centered": centered}, options, strict=strict)
    if step is None and "global_step" not in arrays:
        notes.append("there is no global_step: step is 0")
    count = whole(np.asarray(arrays.get("global_step", 0)) if step is None else step)
    state = {
        variable: slots.of_rule({"step": count} | {slot: numbers[i] for i, slot in enumerate(order)}, rule)
        for variable, numbers in found.items()
    }
    checkpoint = Checkpoint((Group(rule, tuple(state)),), state, tuple(notes))
    return checkpoint.check() if strict else checkpoint


def to_tf1(checkpoint: Checkpoint, *, name: str = "RMSProp") -> dict[str, Array]:
    """Write the slots as a dict of arrays by name, and `global_step`, for `variable.load` or an assignment.

    `arguments(checkpoint.rule, "tf1")` has the options for `tf.train.RMSPropOptimizer`.

    Raises:
        ValueError: TensorFlow cannot have the rule, several rules, or a parameter without state.

    Warns:
        UserWarning: the momentum buffer had to be converted.
    """
    checkpoint = checkpoint.written("tf1")
    rule, result = checkpoint.rule, {"global_step": np.asarray(checkpoint.step, np.int64)}
    for variable, entry in zip(checkpoint.names, checkpoint.stepped(), strict=True):
        square = slots.square_avg(entry)
        own = {"momentum_buffer": np.zeros_like(square), **entry, "square_avg": square}
        for i, slot in enumerate(_ORDER[3 if rule.centered else 2]):
            result[f"{variable}/{name}" + (f"_{i}" if i else "")] = np.array(own[slot])
    return result
