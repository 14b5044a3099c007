"""`stochastic_rounding` and `state_dtype`: what they are for, what a checkpoint keeps of them, and what is refused."""

import copy
import io

import pytest
import torch

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop
from tests.conftest import parameter

BF16, LOW = torch.bfloat16, {"stochastic_rounding": True, "state_dtype": torch.bfloat16}
N = 2000


def constant_gradient(make, steps, start=100.0, grad=1.0, dtype=BF16, **options):
    p = torch.nn.Parameter(torch.full((N,), start, dtype=dtype))
    optimizer = make([p], **options)
    p.grad = torch.full((N,), grad, dtype=dtype)
    for _ in range(steps):
        optimizer.step()
    return p.detach().double(), optimizer.state[p]


@pytest.mark.parametrize("state_dtype", [None, BF16], ids=str)
def test_small_steps_count_on_average(make, state_dtype):
    """500 steps of 1e-3 are one spacing of bfloat16 at 100: to nearest, nothing ever moves."""
    options = {"lr": 1e-3, "alpha": 0.9, "initial_square": 1.0, "state_dtype": state_dtype}
    still, _ = constant_gradient(make, 500, **options)
    assert (still == 100).all()
    p, _ = constant_gradient(make, 500, stochastic_rounding=True, **options)
    assert len(p.unique()) > 2
    assert float(p.mean()) == pytest.approx(99.5, abs=6 * float(p.std()) / N**0.5)


@pytest.mark.parametrize("grad", [0.0, 3.0])
def test_bfloat16_state_decays_and_grows_on_average(make, grad):
    """To nearest, a mean square that starts at 1 would stay there at alpha 0.999 (a tenth of a spacing a step)."""
    options = {"alpha": 0.999, "initial_square": 1.0, "centered": False}
    _, state = constant_gradient(make, 700, grad=grad, state_dtype=BF16, **options)
    v = state["square_avg"]
    assert v.dtype == BF16
    expected = grad**2 + (1 - grad**2) * 0.999**700
    spread = float(v.double().std())
    assert 0 < spread < 0.1 * expected
    assert float(v.double().mean()) == pytest.approx(expected, abs=6 * spread / N**0.5)


def test_bfloat16_of_momentum_and_mean_follow_on_average(make):
    options = {"alpha": 0.99, "centered": True, "momentum": 0.99, "lr": 1e-4}
    _, low = constant_gradient(make, 300, start=1.0, dtype=torch.float32, state_dtype=BF16, eps=1.0, **options)
    _, full = constant_gradient(make, 300, start=1.0, dtype=torch.float32, eps=1.0, **options)
    for name in ("grad_avg", "momentum_buffer"):
        x = low[name].double()
        assert low[name].dtype == BF16
        assert float(x.mean()) == pytest.approx(float(full[name][0]), rel=0.01)


@pytest.mark.parametrize("options", [{}, {"centered": True, "momentum": 0.9}], ids=str)
def test_float64_state_is_nearer_to_float64(make, options):
    g = torch.Generator().manual_seed(0)
    start = torch.randn(300, generator=g)
    kinds = {"single": (torch.float32, None), "state": (torch.float32, torch.float64), "double": (torch.float64, None)}
    params = {k: torch.nn.Parameter(start.to(dtype)) for k, (dtype, _) in kinds.items()}
    optimizers = {k: make([params[k]], alpha=0.999, state_dtype=kept, **options) for k, (_, kept) in kinds.items()}
    for _ in range(400):
        grad = 1 + torch.randn(300, generator=g) / 100
        for k, p in params.items():
            p.grad = grad.to(p.dtype)
            optimizers[k].step()
    name = "variance" if options else "square_avg"
    values = {k: optimizers[k].state[p][name] for k, p in params.items()}
    assert {k: v.dtype for k, v in values.items()}["state"] == torch.float64
    errors = {k: float((values[k].double() - values["double"]).abs().max()) for k in kinds}
    assert errors["state"] < 1e-3 * errors["single"]
    assert optimizers["state"]._step_supports_amp_scaling is False


def advance(optimizer, first, last):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(first, last):
        g = torch.Generator().manual_seed(t)
        for p in params:
            p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
        optimizer.step()
    return params


def model(dtype=BF16):
    g = torch.Generator().manual_seed(9)
    return [torch.nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in ((33,), (4, 5), ())]


@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
@pytest.mark.parametrize("dtype", [BF16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, {"centered": True, "momentum": 0.9}], ids=str)
def test_resume_is_bit_identical(make, dtype, options, way):
    options = {**LOW, "seed": 3, **options}
    whole = make(model(dtype), **options)
    expected = advance(whole, 0, 8)
    first = make(model(dtype), **options)
    params = advance(first, 0, 4)
    if way == "deepcopy":
        second = copy.deepcopy(first)
    else:
        memory = io.BytesIO()
        torch.save(first.state_dict(), memory)
        memory.seek(0)
        second = make([torch.nn.Parameter(p.detach().clone()) for p in params])
        second.load_state_dict(torch.load(memory, weights_only=True))
    resumed = advance(second, 4, 8)
    for p, q in zip(expected, resumed, strict=True):
        assert torch.equal(p, q)
        for name, value in whole.state[p].items():
            assert torch.equal(second.state[q][name], value), name
            assert value.dtype == (torch.float32 if name == "step" else BF16)


@pytest.mark.parametrize("kept", [BF16, torch.float64], ids=str)
def test_state_dtype_survives_loading(make, kept):
    ours = make(model(torch.float32), state_dtype=kept)
    advance(ours, 0, 2)
    other = make(model(torch.float32))
    other.load_state_dict(ours.state_dict())
    for p, q in zip(ours.state, other.state, strict=True):
        assert other.state[q]["square_avg"].dtype == kept
        assert torch.equal(ours.state[p]["square_avg"], other.state[q]["square_avg"])


def test_seed_and_place_change_the_bits(make):
    results = [advance(make(model(), seed=seed, **LOW), 0, 3) for seed in (0, 0, 1, 2**63 - 1)]
    assert all(map(torch.equal, results[0], results[1]))
    for other in results[2:]:
        assert not torch.equal(results[0][0], other[0])
    twins = [torch.nn.Parameter(torch.full((50,), 100.0, dtype=BF16)) for _ in "ab"]
    optimizer = make([{"params": twins[:1]}, {"params": twins[1:]}], **LOW)
    for p in twins:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not torch.equal(*twins)


REFUSED = [
    (torch.float16, {"stochastic_rounding": True}, "float16"),
    (torch.complex64, {"state_dtype": BF16}, "complex"),
    (torch.float32, {"foreach": None, "differentiable": True, "stochastic_rounding": True}, "stochastic_rounding"),
    (torch.float32, {"foreach": None, "differentiable": True, "state_dtype": BF16}, "state_dtype"),
    *[(torch.float32, {"seed": seed}, "seed") for seed in (-1, 2**63, 1.0, True, None, "0")],
    *[(torch.float32, {"state_dtype": x}, "state_dtype") for x in (torch.float16, torch.int32, "bfloat16", 4)],
    *[(torch.float32, {"stochastic_rounding": x}, "stochastic_rounding") for x in (1, None, "yes")],
]


@pytest.mark.parametrize(("dtype", "options", "message"), REFUSED)
def test_refusals_at_construction(make, dtype, options, message):
    with pytest.raises(ValueError, match=message):
        make([parameter(dtype=dtype)], **options)
    optimizer = make([parameter()])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [parameter(dtype=dtype)], **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")
@pytest.mark.parametrize(("dtype", "kept"), [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_fused_wants_a_state_that_the_kernel_keeps(dtype, kept):
    with pytest.raises(RuntimeError, match="fused"):
        RMSprop([parameter(dtype=dtype)], fused=True, state_dtype=kept)
