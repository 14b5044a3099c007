"""`torch.compile` of the step: the bits of the eager step, one compilation, and options that are still obeyed."""

import copy
import warnings

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounterWithBackend

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop

pytestmark = [
    pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine"),
    pytest.mark.filterwarnings("ignore"),  # of torch's compiler, about itself
]
BF16 = torch.bfloat16
CONFIGURATIONS = {
    "plain": {},
    "everything": {"centered": True, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "clip": 0.5},
    "corrected": {"bias_correction": True, "momentum": 0.9, "momentum_form": "ema", "maximize": True},
    "decoupled": {"dialect": "keras", "weight_decay": 0.1, "momentum": 0.5},
    "whole numbers": {"weight_decay": 1, "lr": 1},
    "skip": {"nonfinite": "skip"},
    "capturable": {"capturable": True, "lr": torch.tensor(0.1)},
    "low state": {"state_dtype": BF16, "seed": 3},
}
DTYPES = {"random": (BF16, {"stochastic_rounding": True, "state_dtype": BF16, "seed": 5}), "half": (torch.float16, {})}
DTYPES |= {"double": (torch.float64, {"momentum": 0.9}), "bfloat16": (BF16, {})}
#: torch traces a graph with a float64 of no dimensions twice before it runs, and not again.
ONCE = {BF16: 1, torch.float16: 1, torch.float64: 2}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in ((33,), (4, 5), ())]


def differentiate(params, t):
    g = torch.Generator().manual_seed(t + 1)
    for p in params:
        p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype if p.is_complex() else torch.float32).to(p.dtype)


def compiled(step, backend="aot_eager"):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(step, fullgraph=True, backend=counter), counter


def twins(dtype=torch.float32, groups=lambda params: params, **options):
    """Two optimizers of equal parameters."""
    return [RMSprop(groups(model(dtype)), **copy.deepcopy(options)) for _ in "ab"]


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def race(ours, other, steps=5, before=lambda optimizer, t: None, backend="aot_eager"):
    """One steps compiled, the other eagerly; how often there was something to compile."""
    step, counter = compiled(ours.step, backend)
    for t in range(steps):
        for optimizer, call in ((ours, step), (other, other.step)):
            differentiate(params_of(optimizer), t)
            before(optimizer, t)
            call()
    return counter.frame_count


def assert_equal(ours, other, **tolerance):
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    for p, q in zip(params_of(ours), params_of(other), strict=True):
        torch.testing.assert_close(p, q, **tolerance)
        assert set(ours.state.get(p, {})) == set(other.state.get(q, {}))
        for name, value in other.state.get(q, {}).items():
            torch.testing.assert_close(ours.state[p][name], value, **tolerance)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_equals_the_eager_step(name):
    ours, other = twins(**CONFIGURATIONS[name])
    assert race(ours, other) == 1
    assert_equal(ours, other)
    assert params_of(ours)[0].tolist() != model()[0].tolist()


@pytest.mark.parametrize("name", DTYPES)
def test_equals_the_eager_step_in_every_dtype(name):
    dtype, options = DTYPES[name]
    ours, other = twins(dtype, **options)
    assert race(ours, other) == ONCE[dtype]
    assert_equal(ours, other)


def test_equals_the_eager_step_under_inductor():
    ours, other = twins(momentum=0.9, centered=True)
    assert race(ours, other, steps=3, backend="inductor") == 1
    assert_equal(ours, other)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_complex_numbers(backend):
    ours, other = twins(torch.complex64, momentum=0.9)
    race(ours, other, steps=3, backend=backend)
    assert_equal(ours, other, rtol=1e-5, atol=1e-6)


def split(params):
    options = {"centered": True, "lr": torch.tensor(0.3)}, {"momentum": 0.9, "lr": 0.1}, {"bias_correction": True}
    return [{"params": [p], **o} for p, o in zip(params, options, strict=True)]


def test_groups_and_parameters_without_gradient():
    """Random numbers go by the place among all parameters, those without gradient among them."""
    ours, other = twins(BF16, split, stochastic_rounding=True)

    def leave_out(optimizer, t):
        params_of(optimizer)[t % 2].grad = None

    race(ours, other, before=leave_out)
    assert_equal(ours, other)
    assert [int(ours.state[p]["step"]) for p in params_of(ours)] == [2, 3, 5]


def test_nothing_to_do():
    (ours, _), params = twins(), None
    step, _ = compiled(ours.step)
    params = params_of(ours)
    before = [p.detach().clone() for p in params]
    step()
    assert all(map(torch.equal, params, before))


@pytest.mark.parametrize("fused", [None, False])
def test_schedule_of_a_tensor_lr_compiles_once(fused):
    ours, other = twins(lr=torch.tensor(0.1), fused=fused)
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (ours, other)]

    def advance(optimizer, t):
        if t:
            schedules[optimizer is other].step()

    assert race(ours, other, 7, advance) == 1
    assert ours.param_groups[0]["lr"] == pytest.approx(0.0125)
    assert_equal(ours, other, **({} if fused is None else {"rtol": 1e-5, "atol": 1e-6}))


CHANGES = {
    "lr": [0.1, 0.01, 0.001],
    "alpha": [0.9, 0.8, 0.7],
    "momentum": [0.0, 0.9, 0.0],
    "centered": [False, True, False],
    "clip": [None, 0.1, 0.2],
    "weight_decay": [0, 0.1, 0.2],
    "epsilon_mode": ["outside", "inside", "floor"],
    "maximize": [False, True, False],
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_options_take_effect(name):
    ours, other = twins()
    race(ours, other, 6, lambda optimizer, t: optimizer.param_groups[0].update({name: CHANGES[name][t // 2]}))
    assert_equal(ours, other)


def test_changed_seed_takes_effect():
    ours, other = twins(BF16, stochastic_rounding=True)
    race(ours, other, 4, lambda optimizer, t: optimizer.param_groups[0].update(seed=t))
    assert_equal(ours, other)


def test_hooks_run_whenever_they_came():
    (ours, _), seen = twins(), []
    step, _ = compiled(ours.step)
    for t in range(4):
        differentiate(params_of(ours), t)
        if t == 2:
            ours.register_step_pre_hook(lambda *_: seen.append("before"))
            ours.register_step_post_hook(lambda *_: seen.append("after"))
        step()
    assert seen == ["before", "after"] * 2


def test_two_optimizers_by_one_function():
    (a, b), (c, d) = twins(momentum=0.9), twins(alpha=0.5)
    step, _ = compiled(lambda optimizer: optimizer.step())
    for t in range(3):
        for optimizer in (a, b, c, d):
            differentiate(params_of(optimizer), t)
        step(a)
        step(c)
        b.step()
        d.step()
    assert_equal(a, b)
    assert_equal(c, d)


@pytest.mark.parametrize("options", [{}, {"bias_correction": True, "centered": True, "momentum": 0.9}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_traced_rule(dtype, options):
    ours, other = twins(dtype, fused=False, **options)
    assert race(ours, other) == ONCE.get(dtype, 1)
    assert_equal(ours, other, rtol=1e-5, atol=1e-6)


def test_traced_rule_rounds_the_same():
    ours, other = twins(BF16, fused=False, lr=2.0**-9, alpha=0.0, eps=0.0, stochastic_rounding=True, state_dtype=BF16)

    def signs(optimizer, t):
        for p in params_of(optimizer):
            p.grad = p.grad.sign()

    race(ours, other, before=signs)
    assert_equal(ours, other)


def test_float64_state_of_a_single_number():
    """What a graph of torch 2.13 writes to a float64 tensor of no dimensions is lost."""
    ours, other = twins(state_dtype=torch.float64)
    race(ours, other)
    assert_equal(ours, other, rtol=1e-6, atol=1e-6)
    assert ours.state[params_of(ours)[2]]["square_avg"] > 0


def test_warnings_are_errors_elsewhere():
    """The mark of this module hides the compiler's warnings; ours must not be among them."""
    ours, _ = twins()
    step, _ = compiled(ours.step)
    differentiate(params_of(ours), 0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        step()
    assert [w for w in seen if "rmsprop" in w.filename] == []
