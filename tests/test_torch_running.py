"""`rmsprop.torch.RMSprop` in use: what moves, what stays finite, hooks, threads and forks."""

import copy
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop
from tests.conftest import parameter

INF, NAN = float("inf"), float("nan")


def test_a_step_on_the_cpu_while_a_graph_captures(make, monkeypatch):
    monkeypatch.setattr("rmsprop.torch.gpu.is_capturing", lambda: True)
    p = parameter()
    make([p]).step()
    assert p[0] != 1


def test_only_stepped_parameters_move(make):
    stepped, no_grad, frozen = parameter(), parameter(), parameter()
    no_grad.grad = None
    frozen.requires_grad_(False).grad = None
    optimizer = make([stepped, no_grad, frozen])
    versions = [p._version for p in (stepped, no_grad, frozen)]
    square = (stepped * stepped).sum()
    optimizer.step()
    assert stepped._version > versions[0]
    assert [no_grad._version, frozen._version] == versions[1:]
    assert set(optimizer.state) == {stepped}
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()
    assert len(optimizer.state[no_grad]) == 0  # looking makes an empty entry, as in torch
    no_grad.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[no_grad]["step"] == 1


def test_every_parameter_has_its_own_step_number(make):
    """Bias correction of a parameter that starts late begins with its first step."""
    early, late = parameter(), parameter()
    alone = [parameter() for _ in "el"]
    optimizer, *others = (make(params, dialect="heavyball") for params in ([early, late], alone[:1], alone[1:]))
    late.grad, gradient = None, late.grad
    for t in range(6):
        late.grad = gradient if t > 2 else None
        optimizer.step()
        for other in others[: 1 + (t > 2)]:
            other.step()
    assert [optimizer.state[p]["step"].item() for p in (early, late)] == [6, 3]
    assert_array_equal(torch.stack([early, late]).detach(), torch.stack(alone).detach())


def test_default_dtype_does_not_reach_the_counter(make):
    p = parameter()
    torch.set_default_dtype(torch.bfloat16)
    try:
        optimizer = make([p])
        for _ in range(300):
            optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.state[p]["step"] == 300


def test_default_device_does_not_reach_the_counter(make):
    p = parameter()
    optimizer = make([p])
    with torch.device("meta"):
        optimizer.step()
    assert optimizer.state[p]["step"].device.type == "cpu"
    assert optimizer.state[p]["step"] == 1


def test_hooks_profiler_and_return_value(make):
    p, seen = parameter(), []
    optimizer = make([p])
    optimizer.register_step_pre_hook(lambda *_: seen.append(("pre", p.tolist())))
    optimizer.register_step_post_hook(lambda *_: seen.append(("post", p.tolist())))
    with torch.profiler.profile() as profile:
        assert optimizer.step() is None
    assert seen == [("pre", [1, -2, 3]), ("post", p.tolist())]
    assert p.tolist() != [1, -2, 3]
    assert "Optimizer.step#RMSprop.step" in {event.name for event in profile.events()}
    optimizer.zero_grad()
    assert p.grad is None


def with_a_constant_gradient(optimizer, steps=3000):
    (p,) = optimizer.param_groups[0]["params"]
    p.grad = torch.rand(p.shape, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.step()
    return p.detach()


def test_centered_torch_turns_to_nan_on_a_constant_gradient():
    p = torch.nn.Parameter(torch.zeros(256))
    assert torch.isnan(with_a_constant_gradient(torch.optim.RMSprop([p], centered=True, foreach=False))).any()


def test_centered_stays_finite_on_a_constant_gradient(make):
    optimizer = make([torch.nn.Parameter(torch.zeros(256))], centered=True)
    steps = 3000 if optimizer.defaults["foreach"] is None and cpu.native else 1300
    p = with_a_constant_gradient(optimizer, steps)
    assert torch.isfinite(p).all()
    ((g, state),) = ((q.grad, entry) for q, entry in optimizer.state.items())
    assert (state["variance"] >= 0).all()
    np.testing.assert_allclose(state["variance"], g**2 * 0.99**steps * (1 - 0.99**steps), 1e-2, 1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_zero_and_tiny_gradients(make, dtype):
    p, q = (parameter((1.0, 1.0, 1.0), (0.0, 1e-4, 3000.0 if dtype == torch.float16 else 1e15), dtype) for _ in "pq")
    optimizer = make([p], lr=0.1)
    optimizer.step()
    assert p[0] == 1
    np.testing.assert_allclose(p.detach().double()[1:], 0, atol=0.01)  # the first step is lr / sqrt(1 - alpha)
    zero = make([q], eps=0.0)
    q.grad[:] = 0
    zero.step()
    assert q.tolist() == [1, 1, 1]


def test_subnormal_state_becomes_zero(make):
    p = parameter(grad=(0.0, 1e-20, 1e-10))
    optimizer = make([p], momentum=0.9)
    optimizer.step()
    assert optimizer.state[p]["square_avg"][:2].tolist() == [0, 0]
    optimizer.state[p]["square_avg"][:] = 1.18e-38
    optimizer.state[p]["momentum_buffer"][:] = torch.tensor([1.2e-38, -1.2e-38, 1.0])
    p.grad = torch.zeros(3)
    optimizer.step()
    assert optimizer.state[p]["square_avg"].tolist() == [0, 0, 0]
    assert optimizer.state[p]["momentum_buffer"].tolist() == pytest.approx([0, 0, 0.9], rel=1e-6, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_nonfinite_skip_leaves_entries_alone(make, dtype):
    p, q = (parameter(dtype=dtype) for _ in "pq")
    skipping, plain = make([p], nonfinite="skip", momentum=0.9), make([q], momentum=0.9)
    for optimizer in (skipping, plain):
        optimizer.step()
    state = copy.deepcopy(skipping.state[p])
    before = p.detach().clone()
    p.grad[:2] = torch.tensor([NAN, 2e19])
    for optimizer in (skipping, plain):
        optimizer.step()
    bad = 2 if not dtype.is_complex else 0
    assert torch.equal(p[2], q[2])
    if bad:
        assert torch.equal(p[:2], before[:2])
        assert torch.equal(skipping.state[p]["square_avg"][:2], state["square_avg"][:2])
    else:
        assert torch.equal(torch.view_as_real(p.detach())[:2, 0], torch.view_as_real(before)[:2, 0])
    assert (skipping.skipped, plain.skipped) == (2, 0)
    skipping.step()
    assert skipping.skipped == 4
    assert skipping.state[p]["step"] == 3


def test_nonfinite_propagates_as_torch_does(make):
    p, q = (parameter(grad=(NAN, INF, 0.1)) for _ in "pq")
    for optimizer in (make([p]), torch.optim.RMSprop([q])):
        optimizer.step()
    assert_array_equal(torch.isnan(p), torch.isnan(q))
    assert_array_equal(torch.isnan(p), [True, True, False])


def test_two_optimizers_in_two_threads(make):
    x = torch.linspace(-1, 1, 1 << 18)
    pairs = []
    for _ in range(3):
        p = torch.nn.Parameter(x.clone())
        p.grad = x
        pairs.append((make([p]), p))

    def work(optimizer):
        for _ in range(5):
            optimizer.step()

    threads = [threading.Thread(target=work, args=[optimizer]) for optimizer, _ in pairs[:2]]
    for thread in threads:
        thread.start()
    work(pairs[2][0])
    for thread in threads:
        thread.join()
    for optimizer, p in pairs[:2]:
        assert torch.equal(p, pairs[2][1])
        assert optimizer.state[p]["step"] == 5


FORK = """
import os, torch
from rmsprop.torch import RMSprop
torch.set_num_threads(2)
p = torch.nn.Parameter(torch.ones(1 << 20))
p.grad = p.detach().clone()
optimizer = RMSprop([p])
optimizer.step()
if (child := os.fork()) == 0:
    optimizer.step()
    os._exit(0 if p[-1] < 0.9 and optimizer.state[p]["step"] == 2 else 1)
assert os.waitpid(child, 0)[1] == 0
assert optimizer.state[p]["step"] == 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.skipif(cpu.native is None, reason="torch's own threads, which lists of tensors use, do not outlive a fork")
def test_fork_after_a_threaded_step():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


def test_threads_take_turns(make):
    """torch's own optimizers give a different result every time."""
    p = torch.nn.Parameter(torch.zeros(20_000))
    p.grad = torch.ones(20_000)
    optimizer = make([p], momentum=0.9)
    threads = [threading.Thread(target=lambda: [optimizer.step() for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert optimizer.state[p]["step"] == 80
    assert p.min() == p.max()


def test_hooks_of_all_optimizers_run(make):
    """torch's wrapper is left out of a step only while nobody listens."""
    p, seen = parameter(), []
    optimizer = make([p])
    optimizer.step()
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("before")),
        register_optimizer_step_post_hook(lambda *_: seen.append("after")),
    ]
    optimizer.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert seen == ["before", "after"]


def closure():
    return 5


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((closure,), {}), ((), {"closure": closure}), ((None,), {})])
def test_hooks_get_what_torch_passes(args, kwargs):
    seen = {RMSprop: [], torch.optim.RMSprop: []}
    for cls, calls in seen.items():
        optimizer = cls([parameter()])
        for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
            register(lambda which, args, kwargs, calls=calls: calls.append((type(which), len(args), args[1:], kwargs)))
        calls.append(optimizer.step(*args, **kwargs))
    ours, theirs = ([call[1:] if isinstance(call, tuple) else call for call in calls] for calls in seen.values())
    assert ours == theirs
    assert len(ours) == 3


def test_a_hook_gives_the_step_its_closure(make):
    optimizer = make([parameter()])
    optimizer.register_step_pre_hook(lambda which, args, kwargs: (args, {"closure": closure}))
    assert optimizer.step() == 5


def test_hooks_of_state_dict_see_square_avg(make):
    p, seen = parameter(), []
    optimizer = make([p], centered=True)
    optimizer.step()
    optimizer.register_state_dict_post_hook(lambda _, result: {"renamed": result["state"]})
    optimizer.register_state_dict_post_hook(lambda _, result: seen.append(set(result["state"][0])), prepend=True)
    result = optimizer.state_dict()
    assert list(result) == ["renamed"]
    assert seen == [set(result["renamed"][0])]
    assert "square_avg" in seen[0]
    assert list(optimizer.state_dict()) == ["renamed"]


@pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")
def test_ctrl_c_in_the_native_call_leaves_a_whole_step(monkeypatch):
    """Python hears of it as the call returns: the weights have moved, and so must all that belongs to them."""
    p, q = parameter(), parameter()
    interrupted, whole = RMSprop([p], momentum=0.9, centered=True), RMSprop([q], momentum=0.9, centered=True)
    native = cpu.step

    def stepped_and_interrupted(groups, threads):
        native(groups, threads)
        raise KeyboardInterrupt

    whole.step()
    version = p._version
    monkeypatch.setattr(cpu, "step", stepped_and_interrupted)
    with pytest.raises(KeyboardInterrupt):
        interrupted.step()
    assert p._version > version
    torch.testing.assert_close(interrupted.state[p], whole.state[q], rtol=0, atol=0)
    assert torch.equal(p, q)
