"""`rmsprop.torch.RMSprop` on a GPU: steps in a CUDA graph, over lists of tensors, under `GradScaler`."""

import pytest
import torch

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop, Rprop, gpu

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


def parameters(device, dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes]
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
@pytest.mark.parametrize("foreach", [True, False])
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


@pytest.mark.parametrize("fused", [None, True])  # True leaves it to the step to unscale
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("fill", [float("inf"), float("nan")])
def test_grad_scaler_leaves_out_what_is_not_finite(fill, capturable, fused):
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
    scaler.scale(torch.ones((), device="cuda"))  # makes the scale's tensor
    params, others = parameters("cuda"), parameters("cuda")
    scaled, plain = RMSprop(params, capturable=capturable, fused=fused), RMSprop(others)
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


#: Options of steps that the kernel makes, and some for Rprop.
KERNEL = {
    **OPTIONS,
    "clip": {"clip": 0.5, "clip_weights": 1.0, "momentum": 0.9, "momentum_form": "ema", "nesterov": True},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True, "epsilon_mode": "floor", "maximize": True},
    "skip": {"nonfinite": "skip", "centered": True},
    "dithered": {"state_dtype": torch.bfloat16, "stochastic_rounding": True, "seed": 3, "momentum": 0.9},
    "irprop-": {"variant": "irprop-"},
    "rprop+": {"variant": "rprop+"},
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
with_kernel = pytest.mark.skipif(cpu.native is None or gpu.kernel() is None, reason="no kernel for GPUs")


def optimizer_for(params, options):
    return (Rprop if "variant" in options else RMSprop)(params, **options)


@pytest.fixture
def only_the_kernel(monkeypatch):
    """No step may go through lists of tensors."""
    monkeypatch.setattr("rmsprop.torch.mixed.lists.step", None)
    monkeypatch.setattr("rmsprop.torch.graph.lists.step", None)


@with_kernel
@pytest.mark.parametrize("options", KERNEL.values(), ids=KERNEL.keys())
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("only_the_kernel")
def test_the_kernels_bits_are_those_of_the_cpu(dtype, capturable, options):
    narrow = dtype in (torch.float32, torch.bfloat16)
    if (capturable and "nonfinite" in options) or ("state_dtype" in options and not narrow):
        pytest.skip("cannot be combined")
    shapes = [*SHAPES, (1030,), (70, 300), (0, 2)]
    params, others = parameters("cuda", dtype, shapes), parameters("cpu", dtype, shapes)
    optimizer, other = optimizer_for(params, {**options, "capturable": capturable}), optimizer_for(others, options)
    for t in range(4):
        fill_gradients(params, t)
        fill_gradients(others, t)
        if t == 1 and "nonfinite" in options:
            params[0].grad[0, 0] = others[0].grad[0, 0] = float("inf")
        optimizer.step()
        other.step()
    assert_same(optimizer, other, rtol=0, atol=0)
    assert "nonfinite" not in options or optimizer.skipped == other.skipped == 1


@with_kernel
@pytest.mark.usefixtures("only_the_kernel")
@pytest.mark.parametrize("capturable", [False, True])
def test_memory_in_another_order(capturable):
    """Channels last, transposed, at an address that 16 does not divide."""
    params, others = parameters("cuda", shapes=[(2, 3, 4, 5)]), parameters("cpu", shapes=[(2, 3, 4, 5)])
    params[0].data = params[0].data.contiguous(memory_format=torch.channels_last)
    params[0].grad = params[0].grad.contiguous(memory_format=torch.channels_last)
    for each, device in ((params, "cuda"), (others, "cpu")):
        base = torch.arange(12.0, device=device)
        each.append(torch.nn.Parameter(base[1:11]))
        each[-1].grad = torch.zeros(11, device=device)[1:]
    optimizer, other = RMSprop(params, capturable=capturable, fused=True), RMSprop(others)
    for t in range(3):
        fill_gradients(params, t)
        fill_gradients(others, t)
        optimizer.step()
        other.step()
    assert_same(optimizer, other, rtol=0, atol=0)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_gradient_in_another_order_than_its_parameter(capturable):
    params, others = parameters("cuda"), parameters("cpu")
    optimizer, other = RMSprop(params, capturable=capturable), RMSprop(others)
    for t in range(3):
        params[0].grad = params[0].grad.t().contiguous().t()
        fill_gradients(params, t)
        fill_gradients(others, t)
        optimizer.step()
        other.step()
    assert_same(optimizer, other, rtol=1e-6, atol=1e-7)


def test_parameters_here_and_there():
    params = [*parameters("cuda"), *parameters("cpu")]
    others = [*parameters("cpu"), *parameters("cpu")]
    optimizer, other = RMSprop(params, momentum=0.9), RMSprop(others, momentum=0.9)
    for t in range(3):
        fill_gradients(params, t)
        fill_gradients(others, t)
        optimizer.step()
        other.step()
    assert_same(optimizer, other, rtol=0, atol=0)


@with_kernel
def test_gradients_that_move_and_streams_that_change():
    params, others = parameters("cuda"), parameters("cpu")
    optimizer, other = RMSprop(params), RMSprop(others)
    kept = []  # so that no gradient has the memory of an earlier one
    for t in range(6):
        fill_gradients(others, t)
        other.step()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for p, q in zip(params, others, strict=True):
                kept.append(p.grad)
                p.grad = q.grad.cuda()
            optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
    assert_same(optimizer, other, rtol=0, atol=0)


def captured_step(optimizer):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


@with_kernel
def test_graphs_that_live_side_by_side():
    """Each reads its own tables, whatever steps and graphs come after it; of a size that no warm-up has met."""
    shapes = [(64, 64)] * 100
    params, others = parameters("cuda", shapes=shapes), parameters("cpu", shapes=shapes)
    optimizer = RMSprop(params, capturable=True, bias_correction=True, momentum=0.5)
    other = RMSprop(others, bias_correction=True, momentum=0.5)
    fill_gradients(params, 0)
    first, read = captured_step(optimizer), [p.grad for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    second = captured_step(optimizer)  # its warm-up is a step with gradients of 0
    for t in range(2):
        fill_gradients(others, 0)
        if t == 1:
            for p in others:
                p.grad.zero_()
        other.step()
    for t in range(2, 6):
        fill_gradients(others, 0 if t % 2 else t)
        other.step()
        if t % 2:
            first.replay()
            continue
        fill_gradients(params, t)
        second.replay()
    torch.cuda.synchronize()
    del read
    assert_same(optimizer, other, rtol=0, atol=0)


@with_kernel
@pytest.mark.usefixtures("only_the_kernel")
def test_a_graph_reads_scale_and_found_inf_at_each_replay():
    params, others = parameters("cuda"), parameters("cpu")
    optimizer, other = RMSprop(params, capturable=True), RMSprop(others)
    optimizer.grad_scale, optimizer.found_inf = (torch.tensor(x, device="cuda") for x in (1.0, 0.0))
    graph = captured_step(optimizer)
    fill_gradients(others, 0)
    for p in others:
        p.grad.zero_()
    other.step()  # the warm-up
    for t, (scale, found) in enumerate([(8.0, 0.0), (8.0, 1.0), (4.0, 0.0)]):
        optimizer.grad_scale.fill_(scale)
        optimizer.found_inf.fill_(found)
        fill_gradients(params, t)
        for p in params:
            p.grad.mul_(scale)
        graph.replay()
        if not found:
            fill_gradients(others, t)
            other.step()
    assert_same(optimizer, other, rtol=0, atol=0)


@with_kernel
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")
def test_a_graph_needs_capturable():
    params = parameters("cuda")
    optimizer = RMSprop(params)
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="expected capturable=True of RMSprop"), torch.cuda.graph(graph):
        optimizer.step()


def test_counters_go_where_capturable_needs_them():
    params, others = parameters("cuda"), parameters("cpu")
    optimizer, other = RMSprop(params, bias_correction=True), RMSprop(others, bias_correction=True)
    for t, capturable in enumerate([False, True, True, False]):
        optimizer.param_groups[0]["capturable"] = capturable
        fill_gradients(params, t)
        fill_gradients(others, t)
        optimizer.step()
        other.step()
        assert {optimizer.state[p]["step"].device.type for p in params} == {"cuda" if capturable else "cpu"}
    assert_same(optimizer, other, rtol=0, atol=0)


@with_kernel
@pytest.mark.usefixtures("only_the_kernel")
@pytest.mark.parametrize("capturable", [False, True])
def test_compiled_steps_do_not_compile_again_for_another_lr(capturable):
    params, others = parameters("cuda"), parameters("cpu")
    lr = torch.tensor(0.01, device="cuda")
    optimizer = RMSprop(params, lr=lr, momentum=0.9, capturable=capturable)
    other = RMSprop(others, lr=float(lr), momentum=0.9)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(optimizer.step, fullgraph=True)
    for t in range(4):
        lr.fill_(0.1 / (t + 1))
        other.param_groups[0]["lr"] = float(lr)
        fill_gradients(params, t)
        fill_gradients(others, t)
        step()
        other.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert_same(optimizer, other, rtol=0, atol=0)


@with_kernel
def test_a_step_takes_no_memory_that_grows_with_the_model():
    params = parameters("cuda", shapes=[(2048, 2048)] * 2)
    optimizer = RMSprop(params, momentum=0.9, centered=True)
    optimizer.step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 1 << 16
