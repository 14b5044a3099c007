"""What every torch optimizer promises, as PyTorch's own suite (TestOptimRenewed) asks for it, and with numbers."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.autograd import gradcheck

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop
from tests.conftest import parameter
from tests.test_torch import TABLE, array, problem, run

WAYS = [{}, {"foreach": True}, {"foreach": False}, {"fused": False}, {"differentiable": True}]
if cpu.native is not None:
    WAYS.append({"fused": True})
EXTRAS = [{"bias_correction": True, "nesterov": True, "momentum": 0.9}, {"clip": 0.5, "decoupled_weight_decay": True}]
ways = pytest.mark.parametrize("way", WAYS, ids=str)


def stepping(params, way, **options):
    """The optimizer, and the parameters as it may write to them: autograd follows no step of a leaf."""
    own = [p.clone() if way.get("differentiable") else p for p in params]
    for p in own:
        p.retain_grad()  # or torch warns when `grad` of one that is no leaf is looked at
    return RMSprop(own, **options, **way), own


@pytest.mark.parametrize("options", [*TABLE, *EXTRAS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_every_way_gives_the_same(options, dtype):
    results = []
    for way in WAYS:
        params, grads = problem(dtype)
        optimizer, own = stepping(params, way, **copy.deepcopy(options))
        run(optimizer, grads)
        assert all(optimizer.state[p]["step"] == len(grads) for p in own)
        results.append([array(p) for p in own] + [array(x) for p in own for x in optimizer.state[p].values()])
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 2**-6}.get(dtype, 2e-5)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert_allclose(y, x, tolerance, tolerance)


@ways
@pytest.mark.parametrize("options", TABLE, ids=str)
def test_no_gradient_and_gradients_of_zero_move_nothing(way, options):
    if options.get("weight_decay"):
        options = {**options, "weight_decay": 0}
    (p, q), (own, idle) = (parameter(), parameter()), (None, None)
    optimizer, (own, idle) = stepping([p, q], way, **options)
    own.grad, idle.grad = torch.zeros(3), None
    before = own.detach().clone()
    for _ in range(3):
        optimizer.step()
    assert torch.equal(own, before)
    assert not optimizer.state.get(idle)


def sparse_of(dense):
    """The same gradient as a sparse one that is not coalesced: every row comes twice, in parts, out of order."""
    rows = dense.abs().sum(1).nonzero()[:, 0]
    index = torch.cat([rows.flip(0), rows])
    values = torch.cat([0.25 * dense[rows].flip(0), 0.75 * dense[rows]])
    return torch.sparse_coo_tensor(index[None], values, dense.shape, check_invariants=True)


@ways
@pytest.mark.parametrize("options", [*TABLE, *EXTRAS], ids=str)
def test_sparse_gradients_give_the_dense_result_with_any_rule(way, options):
    results = []
    for is_sparse in (False, True):
        rng = torch.Generator().manual_seed(0)
        table = torch.nn.Parameter(torch.randn(12, 3, generator=rng, dtype=torch.float64))
        optimizer, (p,) = stepping([table], way, **copy.deepcopy(options), sparse="dense")
        for _ in range(10):
            g = torch.randn(12, 3, generator=rng, dtype=torch.float64) * (torch.rand(12, 1, generator=rng) < 0.3)
            p.grad = sparse_of(g) if is_sparse else g
            optimizer.step()
        results.append(array(p))
    assert_allclose(results[1], results[0], 1e-12, 1e-13)


def test_sparse_embedding_learns_as_torch_does_with_dense_gradients(make):
    tables = []
    for is_sparse in (True, False):
        torch.manual_seed(0)
        bag = torch.nn.EmbeddingBag(20, 4, sparse=is_sparse, mode="sum")
        optimizer = make(bag.parameters()) if is_sparse else torch.optim.RMSprop(bag.parameters())
        for t in range(20):
            optimizer.zero_grad()
            index = torch.arange(6).reshape(2, 3) * (t % 3 + 1) % 20
            (bag(index) - 1).square().mean().backward()
            assert bag.weight.grad.is_sparse == is_sparse
            optimizer.step()
        tables.append(array(bag.weight))
    assert_allclose(tables[0], tables[1], 1e-5, 1e-6)


DIFFERENTIABLE = [
    {"lr": 0.9, "maximize": True, "momentum": 0.9, "weight_decay": 0.1, "centered": True},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "bias_correction": True, "centered": True},
    {"lr": 0.1, "decoupled_weight_decay": True, "weight_decay": 0.1, "nonfinite": "skip", "clip": 3.0},
]


@pytest.mark.parametrize("options", DIFFERENTIABLE, ids=str)
def test_autograd_follows_a_step(options):
    def step(p, grad, square, mean, buffer):
        p = p.clone()
        p.grad = grad
        optimizer = RMSprop([p], differentiable=True, **options)
        state = {"step": torch.tensor(0.0), "square_avg": square.clone()}
        optimizer.state[p].update(state | {"grad_avg": mean.clone(), "momentum_buffer": buffer.clone()})
        optimizer.step()
        return (p, *(x for x in optimizer.state[p].values() if x.requires_grad))

    rng = torch.Generator().manual_seed(0)
    inputs = [torch.rand(10, generator=rng, dtype=torch.float64) + (i == 2) for i in range(5)]
    assert gradcheck(step, [x.requires_grad_() for x in inputs])


def test_derivatives_are_torchs_even_where_a_gradient_is_zero():
    found = []
    for cls in (RMSprop, torch.optim.RMSprop):
        start = torch.ones(3, dtype=torch.float64, requires_grad=True)
        grad = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64, requires_grad=True)
        p = start.clone()
        p.grad = grad
        optimizer = cls([p], lr=0.1, differentiable=True)
        optimizer.state[p].update(step=torch.tensor(0.0), square_avg=torch.ones(3, dtype=torch.float64))
        for _ in range(2):
            optimizer.step()
        p.square().sum().backward()
        found.append((start.grad, grad.grad))
    for ours, theirs in zip(*found, strict=True):
        assert_allclose(ours, theirs, 1e-12)


def test_derivatives_of_a_dead_weight_are_finite():
    """torch's are NaN: the root's slope at 0 is infinite."""
    start = torch.ones(2, requires_grad=True)
    p = start.clone()
    p.grad = torch.zeros(2)
    RMSprop([p], differentiable=True).step()
    p.sum().backward()
    assert start.grad.tolist() == [1, 1]


@ways
def test_state_dict_survives_what_others_put_there(way):
    optimizer, (p,) = stepping([parameter()], way, centered=True)
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.state["note"] = 1
    saved = optimizer.state_dict()
    assert saved["state"]["note"] == 1
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.state["note"] == 1
    assert optimizer.state[p]["step"] == 2


def test_older_state_dicts_load():
    ours = RMSprop([parameter()], momentum=0.9)
    ours.step()
    saved = copy.deepcopy(ours.state_dict())
    for group in saved["param_groups"]:
        for flag in ("foreach", "fused", "differentiable", "maximize", "capturable", "state_dtype", "seed"):
            del group[flag]
    other = RMSprop([parameter()])
    other.load_state_dict(saved)
    assert {name: other.param_groups[0][name] for name in ("fused", "maximize", "momentum")} == {
        "fused": None,
        "maximize": False,
        "momentum": 0.9,
    }
    other.step()


REFUSED = [
    (None, {"lr": torch.tensor([0.1, 0.2])}, ValueError, "Tensor lr must be 1-element"),
    (None, {"momentum": -1.0}, ValueError, "Invalid momentum value: -1.0"),
    ([parameter()], {"fused": True, "foreach": True}, RuntimeError, "`fused` and `foreach` cannot be `True` together."),
    ([parameter()], {"fused": True, "differentiable": True}, RuntimeError, "`fused` does not support `differentiable`"),
    ([parameter()], {"foreach": True, "differentiable": True}, ValueError, "foreach value: True.*differentiable"),
    ([parameter()], {"capturable": True, "nonfinite": "skip"}, ValueError, "capturable=True: nonfinite='skip'"),
    ([parameter()], {"fused": 1}, ValueError, "Invalid fused value: 1: expected True, False or None"),
    ([parameter()], {"capturable": 1}, ValueError, "Invalid capturable value: 1"),
    ([parameter()], {"state_dtype": torch.float16}, ValueError, r"Invalid state_dtype value: torch\.float16"),
    ([parameter()], {"seed": -1}, ValueError, "Invalid seed value: -1"),
    ([parameter()], {"fused": True, "state_dtype": torch.float64}, RuntimeError, "`fused=True` requires"),
]


@pytest.mark.parametrize(("params", "options", "kind", "words"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_is_refused_at_construction(params, options, kind, words):
    with pytest.raises(kind, match=words):
        RMSprop(params, **options)


def test_a_refused_group_is_not_taken():
    optimizer = RMSprop([parameter()], fused=cpu.native is not None)
    with pytest.raises(ValueError, match="float16"):
        optimizer.add_param_group({"params": [parameter(dtype=torch.float16)], "stochastic_rounding": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")
def test_fused_waits_for_a_meta_parameter_to_become_real():
    p = torch.nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = RMSprop([p], fused=True)
    p.grad = torch.zeros(3, device="meta")
    with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be floating point Tensors"):
        optimizer.step()
    p.grad = None
    optimizer.step()


def test_schedulers_do_not_wrap_the_step_and_still_warn(make):
    p = parameter()
    optimizer = make([p])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert "step" not in vars(optimizer)
    with pytest.warns(UserWarning, match=r"before `optimizer\.step\(\)`"):
        schedule.step()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    schedule.step()  # no warning
    assert_array_equal(optimizer.param_groups[0]["lr"], schedule.get_last_lr()[0])


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "centered": True, "bias_correction": True, "clip": 0.5}], ids=str
)
def test_the_step_that_a_cuda_graph_would_capture(monkeypatch, options):
    """No GPU here: the same code, run on the CPU one operation after the other."""
    monkeypatch.setattr(RMSprop, "_is_captured", lambda self: True)
    found = []
    for way in ({"capturable": True, "fused": False}, {"capturable": True}, {"fused": False}):
        if not way.get("capturable"):
            monkeypatch.undo()
        params, grads = problem(torch.float64)
        optimizer = RMSprop(params, lr=torch.tensor(0.01), **options, **way)
        run(optimizer, grads)
        found.append([array(p) for p in params] + [array(x) for p in params for x in optimizer.state[p].values()])
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            assert_allclose(y, x, 1e-12, 1e-13)


def test_float32_gradients_of_bfloat16_parameters(make):
    """Where `p.grad_dtype` asks for them; they are not rounded on the way."""
    p, q = (torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32))
    p.grad_dtype = torch.float32
    p.grad, q.grad = (torch.tensor([1.001, 2.003, -3.007]) for _ in "pq")
    ours, other = make([p]), make([q])
    ours.step()
    other.step()
    assert_allclose(ours.state[p]["square_avg"], other.state[q]["square_avg"], 1e-6)
    assert torch.equal(p, q.bfloat16())


def test_numpy_numbers_are_kept_as_pythons():
    group = RMSprop([parameter()], lr=np.float32(0.5), alpha=np.float64(0.9)).param_groups[0]
    assert (type(group["lr"]), type(group["alpha"])) == (float, float)
