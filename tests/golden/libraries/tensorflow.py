"""TensorFlow's raw ops and optimizers, Sonnet, and Keras on each of its backends."""

import os
from functools import partial
from typing import Any

import numpy as np

from tests.golden.case import NUMBERS, Arrays, Case, Library, Run, find
from tests.golden.libraries.torch import SHRINKS


def tensorflow(target: str, params: Arrays, *, initial_square: float = 1.0, **call: Any) -> Run:
    """A raw op, dense or sparse, whose state is ours to make."""
    import tensorflow as tf

    op, dtype = find(target), params[0].dtype
    ps = [tf.Variable(p) for p in params]
    state = {"v": [tf.Variable(np.full_like(p, initial_square)) for p in params]}
    state["b"] = [tf.Variable(np.zeros_like(p)) for p in params]
    slots = {"ms": "v", "mom": "b"}
    if "Centered" in target:
        state["m"] = [tf.Variable(np.zeros_like(p)) for p in params]
        slots["mg"] = "m"
    numbers = {name: tf.constant(value, dtype) for name, value in call.items()}

    def step(lr: float, grads: list[Any]) -> None:
        for i, g in enumerate(grads):
            handles = {slot: state[letter][i].handle for slot, letter in slots.items()}
            given = dict(zip(("indices", "grad"), g, strict=True)) if isinstance(g, tuple) else {"grad": g}
            op(var=ps[i].handle, **handles, lr=tf.constant(lr, dtype), **numbers, **given)

    return step, lambda: {k: [x.numpy() for x in xs] for k, xs in {"p": ps, **state}.items()}


def tensorflow_optimizer(target: str, params: Arrays, **call: Any) -> Run:
    """tf.compat.v1.train, tf_keras (its legacy form too), Sonnet; gradients may be (rows, values)."""
    import tensorflow as tf

    sonnet, like_keras_3 = target.startswith("sonnet"), target == "tf_keras.optimizers.RMSprop"
    lr_now = tf.Variable(0.01, dtype=tf.float32)
    ps = [tf.Variable(p, name=f"p{i}") for i, p in enumerate(params)]
    optimizer = find(target)(learning_rate=lr_now if sonnet else 0.01 if like_keras_3 else lambda: lr_now, **call)

    def step(lr: float, grads: list[Any]) -> None:
        lr_now.assign(lr)
        given = [
            tf.IndexedSlices(tf.constant(g[1]), tf.constant(g[0])) if isinstance(g, tuple) else tf.constant(g)
            for g in grads
        ]
        if like_keras_3:
            optimizer.learning_rate = lr
        if sonnet:
            optimizer.apply(given, ps)
        else:
            optimizer.apply_gradients(zip(given, ps, strict=True))

    def read() -> dict[str, Arrays]:
        found: dict[str, list[Any]] = {"p": ps}
        if sonnet:
            found |= {"v": optimizer.ms, "m": optimizer.mg, "b": optimizer.mom}
        elif hasattr(optimizer, "get_slot"):
            there = optimizer.get_slot_names()
            names = {"v": "rms", "m": "mg", "b": "momentum"}
            found |= {k: [optimizer.get_slot(p, n) for p in ps] for k, n in names.items() if n in there}
        else:
            found |= {"v": optimizer._velocities, "m": getattr(optimizer, "_average_gradients", [])}
            found["b"] = getattr(optimizer, "_momentums", [])
        return {k: [x.numpy() for x in xs] for k, xs in found.items() if xs}

    return step, read


def keras(backend: str, target: str, params: Arrays, **call: Any) -> Run:
    """Keras 3, on one of its backends."""
    os.environ["KERAS_BACKEND"] = backend
    if backend == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    import keras

    dtype = str(params[0].dtype)
    ps = [keras.Variable(p, dtype=dtype) for p in params]
    optimizer = find(target)(learning_rate=0.01, **call)
    optimizer.build(ps)

    def step(lr: float, grads: Arrays) -> None:
        optimizer.learning_rate = lr
        optimizer.apply([keras.ops.convert_to_tensor(g, dtype=dtype) for g in grads], ps)

    def read() -> dict[str, Arrays]:
        found = {"p": ps, "v": optimizer._velocities}
        found |= {"m": optimizer._average_gradients} if optimizer.centered else {}
        found |= {"b": optimizer._momentums} if optimizer.momentum > 0 else {}
        return {k: [keras.ops.convert_to_numpy(x) for x in xs] for k, xs in found.items()}

    return step, read


def _tensorflow() -> list[Case]:
    base = {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-10}

    def case(name: str, op: str, problem: str = "wild", **call: Any) -> Case:
        return Case(name, f"tensorflow.raw_ops.{op}", base | call, "tf1", problem=problem)

    dense, centered = "ResourceApplyRMSProp", "ResourceApplyCenteredRMSProp"
    sparse, sparse_centered = "ResourceSparseApplyRMSProp", "ResourceSparseApplyCenteredRMSProp"
    return [
        case("plain", dense),
        case("momentum", dense, momentum=0.9, epsilon=1e-3),
        case("from zero", dense, initial_square=0.0, momentum=0.9, epsilon=1e-7),
        Case("centered", f"tensorflow.raw_ops.{centered}", base | {"epsilon": 1e-4}, "tf1", {"centered": True}),
        Case(
            "centered, momentum",
            f"tensorflow.raw_ops.{centered}",
            base | {"rho": 0.95, "momentum": 0.9, "epsilon": 1e-4},
            "tf1",
            {"centered": True},
        ),
        case("sparse", sparse, "table"),
        case("sparse, momentum", sparse, "table", momentum=0.9, epsilon=1e-3),
        Case(
            "sparse, centered",
            f"tensorflow.raw_ops.{sparse_centered}",
            base | {"momentum": 0.9, "epsilon": 1e-4},
            "tf1",
            {"centered": True},
            problem="table",
        ),
    ]


def _tensorflow_optimizers() -> list[Case]:
    def case(name: str, target: str, dialect: str, problem: str = "wild", **call: Any) -> Case:
        rounded = {"tf1": NUMBERS, "keras": ("weight_decay",)}.get(dialect, ("beta", "momentum"))
        return Case(name, target, call, dialect, problem=problem, rounded=rounded)

    one, two = "tensorflow.compat.v1.train.RMSPropOptimizer", "tf_keras.optimizers.legacy.RMSprop"
    three = "tf_keras.optimizers.RMSprop"
    return [
        case("v1", one, "tf1"),
        case("v1 momentum", one, "tf1", momentum=0.9, epsilon=1e-3),
        case("v1 centered", one, "tf1", centered=True, momentum=0.9, decay=0.95, epsilon=1e-4),
        case("v1 sparse", one, "tf1", "table", momentum=0.9),
        case("legacy", two, "tf2"),
        case("legacy epsilon", two, "tf2", epsilon=1e-3, rho=0.95),
        case("legacy centered", two, "tf2", centered=True, epsilon=1e-3),
        case("legacy momentum", two, "tf2_momentum", momentum=0.9),
        case("legacy momentum, epsilon", two, "tf2_momentum", momentum=0.5, epsilon=1e-3),
        case("legacy momentum, centered", two, "tf2_momentum", momentum=0.9, centered=True, epsilon=1e-3),
        case("legacy sparse", two, "tf2", "table, dense"),
        case("legacy sparse, momentum", two, "tf2_momentum", "table", momentum=0.9),
        case("tf_keras", three, "keras"),
        case("tf_keras momentum, centered, decay", three, "keras", momentum=0.9, centered=True, weight_decay=0.1),
    ]


def _sonnet() -> list[Case]:
    def case(name: str, problem: str = "wild", **call: Any) -> Case:
        return Case(name, "sonnet.optimizers.RMSProp", call, "sonnet", problem=problem, rounded=NUMBERS)

    return [
        case("defaults"),
        case("momentum", momentum=0.9, epsilon=1e-3),
        case("centered", centered=True, momentum=0.9, decay=0.95, epsilon=1e-4),
        case("sparse", "table", momentum=0.9, epsilon=1e-3),
    ]


def _keras(backend: str) -> list[Case]:
    def case(name: str, dialect: str = "keras", **call: Any) -> Case:
        exception = {"float32": (7.0, SHRINKS), "float64": (1.3e5, SHRINKS)}
        return Case(
            name,
            "keras.optimizers.RMSprop",
            call,
            dialect,
            exception=exception if backend == "torch" and "weight_decay" in call else {},
            rounded=("weight_decay",) if backend == "tensorflow" else (),
        )

    return [
        case("defaults"),
        case("the tutorial's", "tutorial"),
        case("momentum", momentum=0.9, epsilon=1e-3),
        case("centered", centered=True, rho=0.95, epsilon=1e-4),
        case("centered, momentum", centered=True, momentum=0.9, epsilon=1e-4),
        case("weight decay", weight_decay=0.1, momentum=0.5),
    ]


LIBRARIES = {
    "tensorflow": Library(tensorflow, _tensorflow(), ("tensorflow-cpu",)),
    "tensorflow_optimizers": Library(tensorflow_optimizer, _tensorflow_optimizers(), ("tensorflow-cpu", "tf_keras")),
    "sonnet": Library(tensorflow_optimizer, _sonnet(), ("dm-sonnet", "tensorflow-cpu")),
    "keras_torch": Library(partial(keras, "torch"), _keras("torch"), ("keras", "torch")),
    "keras_jax": Library(partial(keras, "jax"), _keras("jax"), ("keras", "jax")),
    "keras_tensorflow": Library(partial(keras, "tensorflow"), _keras("tensorflow"), ("keras", "tensorflow-cpu")),
}
