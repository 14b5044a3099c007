"""MLX, Paddle, MindSpore, MXNet and Chainer."""

from typing import Any

import numpy as np

from tests.golden import problem
from tests.golden.case import SINGLE, Arrays, Case, Library, Run, find


def mlx(target: str, params: Arrays, **call: Any) -> Run:
    """MLX on the CPU."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)  # the only one with float64
    optimizer = find(target)(learning_rate=0.01, **call)
    dtype = getattr(mx, str(params[0].dtype))
    ps = {str(i): mx.array(p, dtype) for i, p in enumerate(params)}

    def step(lr: float, grads: Arrays) -> None:
        optimizer.learning_rate = lr
        ps.update(optimizer.apply_gradients({str(i): mx.array(g, dtype) for i, g in enumerate(grads)}, ps))

    return step, lambda: {
        "p": [np.array(p) for p in ps.values()],
        "v": [np.array(optimizer.state[name]["v"]) for name in ps],
    }


def _mlx() -> list[Case]:
    def case(name: str, **call: Any) -> Case:
        return Case(name, "mlx.optimizers.RMSprop", call, "mlx")

    return [case("defaults"), case("alpha, eps", alpha=0.9, eps=1e-3)]


def paddle(target: str, params: Arrays, **call: Any) -> Run:
    import paddle

    paddle.set_device("cpu")
    paddle.set_default_dtype(str(params[0].dtype))
    ps = [paddle.create_parameter(p.shape, str(p.dtype)) for p in params]
    for p, value in zip(ps, params, strict=True):
        p.set_value(value)
    optimizer = find(target)(learning_rate=0.01, parameters=ps, **call)

    def step(lr: float, grads: Arrays) -> None:
        optimizer.set_lr(lr)
        for p, g in zip(ps, grads, strict=True):
            p.grad = paddle.to_tensor(g)
        optimizer.step()

    names = {"v": "mean_square", "m": "mean_grad", "b": "momentum"}

    def read() -> dict[str, Arrays]:
        slots = {k: optimizer._accumulators[name] for k, name in names.items()}
        found = {k: [slot[p.name].numpy() for p in ps] for k, slot in slots.items()}
        return {"p": [p.numpy() for p in ps], **found}

    return step, read


def _paddle() -> list[Case]:
    def case(name: str, **call: Any) -> Case:
        return Case(name, "paddle.optimizer.RMSProp", call, "paddle", rounded=("beta", "epsilon", "momentum"))

    return [
        case("defaults"),
        case("momentum", momentum=0.9, rho=0.9, epsilon=1e-3),
        case("centered", centered=True, momentum=0.9, epsilon=1e-4),
        case("weight decay", weight_decay=0.1),
    ]


def mindspore(target: str, params: Arrays, **call: Any) -> Run:
    import mindspore as ms

    ps = ms.ParameterTuple([ms.Parameter(ms.Tensor(p), name=f"p{i}") for i, p in enumerate(params)])
    # A learning rate set later does not reach the compiled step: it gets the schedule.
    optimizer = find(target)(ps, learning_rate=problem.load("problem")["lr"].tolist(), **call)

    def step(_: float, grads: Arrays) -> None:
        optimizer(tuple(ms.Tensor(g) for g in grads))

    def read() -> dict[str, Arrays]:
        found = {"p": ps, "v": optimizer.ms, "b": optimizer.moment}
        found |= {"m": optimizer.mg} if optimizer.centered else {}
        return {k: [x.asnumpy() for x in xs] for k, xs in found.items()}

    return step, read


def _mindspore() -> list[Case]:
    def case(name: str, **call: Any) -> Case:
        return Case(name, "mindspore.nn.RMSProp", call, "mindspore", dtypes=SINGLE)

    by_eights = "its CPU kernel puts epsilon outside the root for every whole eight of entries, inside for the rest"
    return [
        case("defaults"),
        case("momentum", momentum=0.9, decay=0.95),
        Case(
            "epsilon",
            "mindspore.nn.RMSProp",
            {"momentum": 0.9, "epsilon": 1e-3, "decay": 0.95},
            "mindspore",
            dtypes=SINGLE,
            exception={"float32": (751, by_eights)},
        ),
        case("centered", centered=True, momentum=0.9, epsilon=1e-4),
        case("weight decay", weight_decay=0.1),
    ]


def mxnet(target: str, params: Arrays, **call: Any) -> Run:
    """MXNet 1 and 2; an update takes one tensor in the one and lists in the other."""
    import mxnet as mx

    optimizer = find(target)(learning_rate=0.01, **call)
    ps = [mx.nd.array(p, dtype=p.dtype) for p in params]
    states = [optimizer.create_state(i, p) for i, p in enumerate(ps)]
    many = mx.__version__.startswith("2")

    def step(lr: float, grads: Arrays) -> None:
        optimizer.set_learning_rate(lr)
        gs = [mx.nd.array(g, dtype=g.dtype) for g in grads]
        if many:
            optimizer.update(list(range(len(ps))), ps, gs, states)
        else:
            for i, (p, g, state) in enumerate(zip(ps, gs, states, strict=True)):
                optimizer.update(i, p, g, state)

    def read() -> dict[str, Arrays]:
        # centered: MXNet 1 keeps (n, g, delta), MXNet 2 (mean, var, mom); the buffer holds what is added
        order = ("m", "v", "b") if many else ("v", "m", "b")
        tuples = [state if isinstance(state, tuple) else (state,) for state in states]
        names = order if len(tuples[0]) == 3 else ("v",)
        found = {k: [state[i].asnumpy() for state in tuples] for i, k in enumerate(names)}
        found |= {"b": [-b for b in found["b"]]} if "b" in found else {}
        return {"p": [p.asnumpy() for p in ps], **found}

    return step, read


def _mxnet(*, first: bool = False) -> list[Case]:
    def case(name: str, dialect: str, options: dict[str, Any] | None = None, **call: Any) -> Case:
        given = {} if options is None else options
        if first:
            call.pop("use_fused_step", None)
            call = {{"rho": "gamma1", "momentum": "gamma2"}.get(k, k): v for k, v in call.items()}
            given = given | ({"epsilon_mode": "inside"} if dialect == "mxnet" else {})
        return Case(name, "mxnet.optimizer.RMSProp", call, dialect, given, SINGLE)

    return [
        case("defaults", "mxnet"),
        case("rho, epsilon", "mxnet", rho=0.95, epsilon=1e-3, wd=0.1),
        case("momentum", "mxnet", {"momentum": 0.0}, momentum=0.5),
        case("clip weights", "mxnet", clip_weights=0.5),
        case("centered, defaults", "mxnet_centered", centered=True),
        case("centered, decay", "mxnet_centered", centered=True, epsilon=1.0, wd=0.1),
        case("centered, momentum", "mxnet_centered", centered=True, rho=0.95, momentum=0.5, epsilon=1e-4),
        *([] if first else [case("unfused", "mxnet", use_fused_step=False, epsilon=1e-3)]),
    ]


def chainer(target: str, params: Arrays, **call: Any) -> Run:
    import chainer

    ps = [chainer.Parameter(p) for p in params]
    optimizer = find(target)(lr=0.01, **call)
    for p in ps:
        p.update_rule = optimizer.create_update_rule()

    def step(lr: float, grads: Arrays) -> None:
        optimizer.hyperparam.lr = lr
        for p, g in zip(ps, grads, strict=True):
            p.grad = g
            p.update()

    def read() -> dict[str, Arrays]:
        states = [p.update_rule.state for p in ps]
        names = {"ms": "v"} if "ms" in states[0] else {"n": "v", "g": "m", "delta": "b"}
        found = {k: [state[name] for state in states] for name, k in names.items()}
        found |= {"b": [-b for b in found["b"]]} if "b" in found else {}  # it holds what is added
        return {"p": [p.array for p in ps], **found}

    return step, read


def _chainer() -> list[Case]:
    def case(name: str, target: str = "RMSprop", dialect: str = "chainer", **call: Any) -> Case:
        return Case(name, f"chainer.optimizers.{target}", call, dialect)

    return [
        case("defaults"),
        case("inside", eps_inside_sqrt=True, alpha=0.9, eps=1e-3),
        case("graves", "RMSpropGraves", "graves"),
        case("graves, other numbers", "RMSpropGraves", "graves", alpha=0.9, momentum=0.5, eps=1e-3),
    ]


LIBRARIES = {
    "mlx": Library(mlx, _mlx(), ("mlx",)),
    "paddle": Library(paddle, _paddle(), ("paddlepaddle",), "requirements-paddle.txt"),
    "mindspore": Library(mindspore, _mindspore(), ("mindspore",)),
    "mxnet": Library(mxnet, _mxnet(), ("mxnet",), "requirements-mxnet2.txt"),
    "mxnet1": Library(mxnet, _mxnet(first=True), ("mxnet",), "requirements-old.txt"),
    "chainer": Library(chainer, _chainer(), ("chainer",), "requirements-old.txt"),
}
