"""`rmsprop.torch.RMSprop` on a GPU: steps in a CUDA graph, over lists of tensors, under `GradScaler`."""

import pytest
import torch

from rmsprop.torch import RMSprop

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

SHAPES = [(5, 4), (3,), (), (2, 2, 2)]
OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "centered": {"centered": True, "momentum": 0.5},
    "bias correction": {"bias_correction": True, "epsilon_mode": "inside"},
    "averaging": {"averaging": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def parameters(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in SHAPES]
    for p in params:
        p.grad = torch.zeros_like(p)
    return params


def fill_gradients(params, t):
    """Written in place: a graph reads the gradients where they were when it was captured."""
    generator = torch.Generator().manual_seed(t)
    for p in params:
        p.grad.copy_(torch.randn(p.shape, generator=generator))


def assert_same(optimizer, other, **tolerance):
    for x, y in zip(optimizer.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(x.detach().cpu(), y.detach().cpu(), **tolerance)
        assert optimizer.state[x].keys() == other.state[y].keys()
        for key, value in optimizer.state[x].items():
            torch.testing.assert_close(value.cpu(), other.state[y][key].cpu(), **tolerance)


@every_option
def test_a_captured_step_replayed_is_the_eager_step(options):
    params, others = parameters("cuda"), parameters("cuda")
    lr = torch.tensor(0.01, device="cuda")
    captured = RMSprop(params, lr=lr, capturable=True, **options)
    eager = RMSprop(others, lr=0.01, **options)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for t in range(3):
            fill_gradients(params, t)
            captured.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records a step, and makes none
        captured.step()
    for t in range(3, 8):
        lr.fill_(0.1 / t)
        fill_gradients(params, t)
        graph.replay()
    for t in range(8):
        eager.param_groups[0]["lr"] = 0.01 if t < 3 else 0.1 / t
        fill_gradients(others, t)
        eager.step()
    torch.cuda.synchronize()
    assert {captured.state[p]["step"].device.type for p in params} == {"cuda"}
    assert {captured.state[p]["step"].item() for p in params} == {8}
    assert_same(captured, eager, rtol=1e-5, atol=1e-6)


@every_option
@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_lists_of_tensors_as_on_the_cpu(dtype, foreach, options):
    optimizer = RMSprop(parameters("cuda", dtype), foreach=foreach, **options)
    other = RMSprop(parameters("cpu", dtype), foreach=foreach, **options)
    for t in range(5):
        for each in (optimizer, other):
            fill_gradients(each.param_groups[0]["params"], t)
            each.step()
    # A rounding that falls the other way moves a float16 or bfloat16 weight by its last bit.
    wide = {"rtol": 1e-5, "atol": 1e-6} if dtype.itemsize > 2 else {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-2}
    assert_same(optimizer, other, **wide)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("fill", [float("inf"), float("nan")])
def test_grad_scaler_leaves_out_what_is_not_finite(fill, capturable):
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
    scaler.scale(torch.ones((), device="cuda"))  # makes the scale's tensor
    params, others = parameters("cuda"), parameters("cuda")
    scaled, plain = RMSprop(params, capturable=capturable), RMSprop(others)
    for t in range(4):
        fill_gradients(params, t)
        for p in params:
            p.grad.mul_(scaler.get_scale())
        if t == 1:
            params[0].grad[0, 0] = fill
        before = [p.detach().clone() for p in params]
        scaler.step(scaled)
        scaler.update()
        if t == 1:
            assert all(map(torch.equal, before, params))
            continue
        fill_gradients(others, t)
        plain.step()
    assert scaler.get_scale() == 4
    assert {scaled.state[p]["step"].item() for p in params} == {3}
    assert_same(scaled, plain, rtol=1e-6, atol=1e-7)


def test_found_inf_reaches_the_step_itself():
    """As trainers set it on an optimizer that unscales in its own step."""
    params, others = parameters("cuda"), parameters("cuda")
    optimizer, other = RMSprop(params), RMSprop(others)
    optimizer.grad_scale, optimizer.found_inf = (torch.tensor(x, device="cuda") for x in (8.0, 1.0))
    fill_gradients(params, 0)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert all(map(torch.equal, before, params))
    optimizer.found_inf.zero_()
    for p in params:
        p.grad.mul_(8)
    optimizer.step()
    fill_gradients(others, 0)
    other.step()
    assert_same(optimizer, other, rtol=1e-6, atol=1e-7)


def test_sparse_rows_as_on_the_cpu():
    tables, optimizers = [], []
    for device in ("cuda", "cpu"):
        torch.manual_seed(0)
        tables.append(torch.nn.Embedding(20, 4, sparse=True).to(device))
        optimizers.append(RMSprop(tables[-1].parameters()))
    for rows in ([1, 2, 2], [3], [2, 19]):
        for table, optimizer in zip(tables, optimizers, strict=True):
            optimizer.zero_grad()
            table(torch.tensor(rows, device=table.weight.device)).square().sum().backward()
            optimizer.step()
    for optimizer in optimizers:
        optimizer.flush()
    assert_same(*optimizers, rtol=1e-5, atol=1e-6)
