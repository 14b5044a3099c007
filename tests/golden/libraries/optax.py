"""optax, in JAX."""

import contextlib
from typing import Any

import numpy as np

from tests.golden.case import Arrays, Case, Library, Run, find

ADDS = "adds wd p to u before lr takes part, where the rule subtracts the two apart: a random walk of roundings"


def optax(target: str, params: Arrays, *, weight_decay: float = 0.0, decay_mode: str = "", **call: Any) -> Run:
    """optax; weight decay is a link of a chain, before the rule (coupled) or after it (decoupled)."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import optax

    decayed = [optax.add_decayed_weights(weight_decay)] if weight_decay else []

    def transform(lr: Any) -> Any:
        if target == "optax.rprop":
            return optax.rprop(0.01, **call)
        if target == "optax.scale_by_rms":
            return optax.chain(optax.scale_by_rms(**call), *decayed, optax.scale_by_learning_rate(lr))
        return optax.chain(*decayed, find(target)(lr, **call))

    ps = [jnp.asarray(p) for p in params]
    state = transform(0.01).init(ps)

    @jax.jit
    def advance(lr: Any, grads: Any, ps: Any, state: Any) -> Any:
        moves, state = transform(lr).update(grads, state, ps)
        return optax.apply_updates(ps, moves), state

    def step(lr: float, grads: Arrays) -> None:
        nonlocal ps, state
        ps, state = advance(jnp.asarray(lr, params[0].dtype), grads, ps, state)

    names = {"v": "nu", "m": "mu", "b": "trace", "prev": "prev_updates", "step_size": "step_sizes"}

    def read() -> dict[str, Arrays]:
        found = {"p": ps}
        for letter, name in names.items():
            with contextlib.suppress(KeyError):
                leaf = optax.tree.get(state, name)
                found |= {letter: leaf} if leaf is not None else {}
        found |= {"b": [-b for b in found["b"]]} if "b" in found else {}  # it holds what is added
        return {k: [np.asarray(x) for x in xs] for k, xs in found.items()}

    return step, read


def _optax() -> list[Case]:
    def case(name: str, target: str = "optax.rmsprop", exception: Any = None, **call: Any) -> Case:
        return Case(name, target, call, "optax", exception=exception or {})

    order = "optax corrects v and m first and centers after; the rule centers first"
    return [
        case("defaults"),
        case("outside", eps_in_sqrt=False, decay=0.99),
        case("momentum", momentum=0.9, eps=1e-3),
        case("momentum, outside", momentum=0.9, eps_in_sqrt=False, eps=1e-3),
        case("nesterov", momentum=0.9, nesterov=True),
        case("bias correction", bias_correction=True, decay=0.99),
        case("bias correction, outside", bias_correction=True, eps_in_sqrt=False, eps=1e-3, momentum=0.5),
        case("initial scale", initial_scale=1.0, momentum=0.9),
        case("centered", centered=True, decay=0.95),
        case("centered, outside", centered=True, eps_in_sqrt=False, momentum=0.9, nesterov=True),
        case(
            "centered, bias correction",
            exception={"float32": ("inf", order + ": NaN"), "float64": (1e12, order)},
            centered=True,
            bias_correction=True,
        ),
        case("coupled decay", weight_decay=0.1, decay_mode="coupled"),
        case("decoupled decay", "optax.scale_by_rms", {"float32": (5, ADDS)}, weight_decay=0.1, decay_mode="decoupled"),
        Case("rprop defaults", "optax.rprop", {}, None),
        Case("rprop etas", "optax.rprop", {"eta_minus": 0.6, "eta_plus": 1.1, "min_step_size": 1e-4}, None),
    ]


LIBRARIES = {
    "optax": Library(optax, _optax(), ("optax", "jax")),
}
