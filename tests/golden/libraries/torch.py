"""torch, and what is a torch.optim.Optimizer: timm, stable-baselines3, PFRL, bitsandbytes, HeavyBall."""

from typing import Any

import numpy as np

from tests.golden.case import SINGLE, Arrays, Case, Library, Run, find

CANCELS = "v - m^2 loses its leading digits where the gradient hardly varies; the variance itself is kept here"
SHRINKS = "multiplies by 1 - lr wd, rounded to float32, where the rule subtracts lr wd p: a random walk of roundings"


def torch_like(target: str, params: Arrays, **call: Any) -> Run:
    """Anything that is a torch.optim.Optimizer."""
    import torch

    if target.startswith("timm") and not hasattr(torch.ops.torchvision, "nms"):  # see tests/peers/conftest.py
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    if target.startswith("heavyball"):
        find("heavyball.utils").compile_mode = None
    ps = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
    optimizer = find(target)(ps, lr=0.01, **call)
    names = {"v": "square_avg", "m": "grad_avg", "b": "momentum_buffer", "prev": "prev", "step_size": "step_size"}
    names |= {"v": "state1"} if target.startswith("bitsandbytes") else {}
    steps = 0

    def step(lr: float, grads: Arrays) -> None:
        nonlocal steps
        steps += 1
        optimizer.param_groups[0]["lr"] = lr
        for p, g in zip(ps, grads, strict=True):
            p.grad = torch.from_numpy(g)
        optimizer.step()

    def read() -> dict[str, Arrays]:
        found = {"p": [p.detach().numpy() for p in ps]}
        for letter, name in names.items():
            if all(name in optimizer.state[p] for p in ps):
                found[letter] = [optimizer.state[p][name].numpy() for p in ps]
        if target.startswith("heavyball"):  # it keeps v / (1 - beta^t)
            (name,) = (key for key in optimizer.state[ps[0]][0] if key.startswith("scale_by_exp_avg_sq"))
            fade = 1 - optimizer.param_groups[0]["betas"][1] ** steps
            found["v"] = [optimizer.state[p][0][name].numpy() * np.float32(fade) for p in ps]
        return found

    return step, read


def _torch() -> list[Case]:
    def case(name: str, dialect: str = "torch", **call: Any) -> Case:
        return Case(name, "torch.optim.RMSprop", call, dialect)

    def rprop(name: str, **call: Any) -> Case:
        return Case(f"rprop {name}", "torch.optim.Rprop", call, None)

    return [
        case("defaults"),
        case("alpha, eps", alpha=0.9, eps=1e-3),
        case("momentum", alpha=0.95, momentum=0.9),
        case("centered", alpha=0.9, centered=True),
        case("centered, momentum", alpha=0.95, centered=True, momentum=0.9),
        case("weight decay", weight_decay=0.1),
        case("maximize", maximize=True, weight_decay=0.1),
        case("foreach", foreach=True, alpha=0.9, centered=True, momentum=0.5, maximize=True),
        Case(
            "centered, decay",  # the entry without gradients sees its own weight
            "torch.optim.RMSprop",
            {"alpha": 0.9, "centered": True, "momentum": 0.5, "weight_decay": 0.01, "maximize": True},
            "torch",
            exception={"float32": (9, CANCELS)},
        ),
        Case(
            "no epsilon", "torch.optim.RMSprop", {"alpha": 0.9, "eps": 0.0}, "hinton", problem="steady", defaults=True
        ),
        Case(
            "centered, steady",
            "torch.optim.RMSprop",
            {"alpha": 0.9, "centered": True},
            "torch",
            problem="steady",
            exception={"float32": (71, CANCELS)},
        ),
        rprop("defaults"),
        rprop("etas, step sizes", etas=[0.6, 1.1], step_sizes=[1e-4, 0.1]),
        rprop("maximize", maximize=True),
    ]


def _timm() -> list[Case]:
    def case(name: str, *, refused: str | None = None, off: float = 0, **call: Any) -> Case:
        exception = {"float32": (off, SHRINKS)} if off else {}
        return Case(name, "timm.optim.RMSpropTF", call, "timm", exception=exception, refused=refused)

    return [
        case("defaults"),
        case("momentum", momentum=0.9, eps=1e-3),
        case("lr outside", momentum=0.9, lr_in_momentum=False),
        case("centered", centered=True, alpha=0.95, eps=1e-4),
        case("centered, momentum", centered=True, momentum=0.9, eps=1e-4),
        case("weight decay", weight_decay=0.1, momentum=0.5),
        case("decoupled decay", off=5, weight_decay=0.1, decoupled_decay=True, momentum=0.9),
        case(
            "one by one",
            off=6,
            foreach=False,
            weight_decay=0.1,
            decoupled_decay=True,
            momentum=0.9,
            lr_in_momentum=False,
        ),
        case("caution", refused="caution", momentum=0.9, caution=True),
        case(
            "corrected decay",
            refused="corrected_weight_decay",
            weight_decay=0.1,
            decoupled_decay=True,
            corrected_weight_decay=True,
        ),
    ]


def _sb3() -> list[Case]:
    def case(name: str, **call: Any) -> Case:
        return Case(name, "stable_baselines3.common.sb2_compat.rmsprop_tf_like.RMSpropTFLike", call, "sb3")

    return [
        case("defaults"),
        case("a2c", alpha=0.99, eps=1e-5, weight_decay=0.0),
        case("momentum", momentum=0.9, alpha=0.9),
        case("centered", centered=True, alpha=0.9),
        case("centered, momentum, decay", centered=True, momentum=0.9, weight_decay=0.1),
    ]


def _pfrl() -> list[Case]:
    def case(name: str, **call: Any) -> Case:
        target = "pfrl.optimizers.RMSpropEpsInsideSqrt"
        return Case(name, target, call, "torch", {"epsilon_mode": "inside"})

    return [case("defaults"), case("dqn", alpha=0.95, eps=1e-2, centered=True), case("momentum", momentum=0.9)]


def _bitsandbytes() -> list[Case]:
    def case(name: str, **call: Any) -> Case:
        # momentum is accepted and read by nothing
        return Case(name, "bitsandbytes.optim.RMSprop32bit", call, "torch", {"momentum": 0.0}, SINGLE)

    return [case("defaults"), case("decay", alpha=0.9, eps=1e-3, weight_decay=0.1), case("momentum", momentum=0.9)]


def _heavyball() -> list[Case]:
    def case(name: str, *, refused: str | None = None, off: float = 0, **call: Any) -> Case:
        options = {"beta": call["betas"][1]} if "betas" in call else {}
        exception = {"float32": (off, SHRINKS)} if off else {}
        return Case(name, "heavyball.RMSprop", call, "heavyball", options, SINGLE, exception=exception, refused=refused)

    return [
        case("defaults"),
        case("betas", betas=[0.9, 0.95], eps=1e-3),
        case("weight decay", off=7, weight_decay=0.1),
        case("cautious decay", refused="cautious_weight_decay", weight_decay=0.1, cautious_weight_decay=True),
        case("caution", caution=True),  # a gradient always has its own sign: nothing changes
    ]


LIBRARIES = {
    "torch": Library(torch_like, _torch(), ("torch",)),
    "timm": Library(torch_like, _timm(), ("timm", "torch")),
    "stable_baselines3": Library(torch_like, _sb3(), ("stable-baselines3", "torch")),
    "pfrl": Library(torch_like, _pfrl(), ("pfrl", "torch")),
    "bitsandbytes": Library(torch_like, _bitsandbytes(), ("bitsandbytes", "torch")),
    "heavyball": Library(torch_like, _heavyball(), ("heavyball", "torch")),
}
