"""Where `rmsprop.torch.RMSprop` must refuse, must leave everything alone, or must stay finite; hooks, threads, forks."""

import copy
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop

INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=["native", "foreach", "no kernel"])
def make(request, monkeypatch):
    assert cpu.native is not None, "the kernel has not been built"
    if request.param == "no kernel":
        monkeypatch.setattr(cpu, "native", None)
    return lambda *args, **options: RMSprop(*args, **{"foreach": request.param == "foreach" or None} | options)


def parameter(values=(1.0, -2.0, 3.0), grad=(0.1, 0.2, -0.3), dtype=torch.float32):
    p = torch.nn.Parameter(torch.tensor(values, dtype=dtype))
    p.grad = torch.tensor(grad, dtype=dtype)
    return p


BAD_OPTIONS = [
    ("lr", "learning rate", [-1, NAN, INF, True, "x", torch.tensor(-1.0), torch.tensor(NAN)]),
    ("alpha", "alpha", [-0.1, 1.0, 1.5, NAN, True, None]),
    ("eps", "epsilon", [-1e-9, NAN, INF, False]),
    ("weight_decay", "weight_decay", [-1, NAN, True]),
    ("momentum", "momentum", [-1.0, 1.0, NAN, True]),
    ("centered", "centered", [1, "yes"]),
    ("maximize", "maximize", [1]),
    ("decoupled_weight_decay", "decoupled_weight_decay", [1]),
    ("epsilon_mode", "epsilon_mode", ["outsid"]),
    ("clip", "clip", [0, -1.0, NAN]),
    ("nonfinite", "nonfinite", ["ignore"]),
]
BAD_OPTIONS = [(name, called, value) for name, called, values in BAD_OPTIONS for value in values]


@pytest.mark.parametrize(("name", "called", "value"), BAD_OPTIONS)
def test_options_outside_their_range(make, name, called, value):
    message = rf"^Invalid {called}( value)?: .*expected"
    p = parameter()
    if value is not None:
        with pytest.raises(ValueError, match=message):
            make([p], **{name: value})
    optimizer = make([p])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [parameter()], name: value})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert p.tolist() == [1, -2, 3]
    assert not optimizer.state


@pytest.mark.parametrize("name", ["capturable", "differentiable"])
def test_what_is_not_there_yet_raises(make, name):
    p = parameter()
    with pytest.raises(ValueError, match=name):
        make([p], **{name: True})
    with pytest.raises(ValueError, match=name):
        make([{"params": [p], name: True}])
    optimizer = make([p])
    optimizer.param_groups[0][name] = True
    with pytest.raises(ValueError, match=name):
        optimizer.step()
    assert p.tolist() == [1, -2, 3]


def test_other_refusals(make):
    p = parameter()
    for call, message in (
        (lambda: make([p], lr=torch.tensor([0.1, 0.2])), "Tensor lr must be 1-element"),
        (lambda: make([p], dialect="kera"), "did you mean 'keras'"),
        (lambda: make([p], nesterov=True), "nesterov"),
        (lambda: make([p], variance_floor=0.1), "variance_floor"),
        (lambda: make([]), "empty parameter list"),
        (lambda: make([{"params": [p]}, {"params": [p]}]), "more than one parameter group"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises((ValueError, UserWarning), match="duplicate"):
        make([p, p])
    with pytest.raises(TypeError, match="rho"):
        make([p], rho=0.9)


def sparse(optimizer, p):
    p.grad = torch.ones(3).to_sparse()


def wrong_shape(optimizer, p):
    p.data = torch.zeros(4)


def double(optimizer, p):
    p.data, p.grad = p.data.double(), None
    p.grad = torch.ones(3, dtype=torch.float64)


def state_of_another_shape(optimizer, p):
    optimizer.state[p]["square_avg"] = torch.zeros(4)


def state_on_another_device(optimizer, p):
    optimizer.state[p]["square_avg"] = torch.zeros(3, device="meta")


def option(name, value):
    return lambda optimizer, p: optimizer.param_groups[1].update({name: value})


def spoilt(optimizer, p):
    p.grad[1] = 2e19
    optimizer.param_groups[1]["nonfinite"] = "error"


BREAKS = {
    "sparse gradient": (sparse, RuntimeError, "does not support sparse gradients"),
    "wrong shape": (wrong_shape, ValueError, "shape"),
    "double after float": (double, ValueError, "float32|dtype"),
    "state of another shape": (state_of_another_shape, ValueError, "shape"),
    "state on another device": (state_on_another_device, ValueError, "square_avg"),
    "negative lr": (option("lr", -1), ValueError, "learning rate"),
    "lr of two elements": (option("lr", torch.ones(2)), ValueError, "element"),
    "bad alpha": (option("alpha", 2.0), ValueError, "alpha"),
    "not finite": (spoilt, FloatingPointError, "finite"),
}


def snapshot(optimizer):
    groups = optimizer.param_groups
    params = [p for group in groups for p in group["params"]]
    values = [(p.detach().clone(), p._version, copy.deepcopy(dict(optimizer.state.get(p, {})))) for p in params]
    return values, optimizer.skipped


def assert_same(x, y):
    for (p, version, state), (q, version2, state2) in zip(x[0], y[0], strict=True):
        assert_array_equal(p, q)
        assert version == version2
        assert state.keys() == state2.keys()
        for key in state:
            if not state[key].is_meta:
                assert_array_equal(state[key], state2[key])
    assert x[1] == y[1]


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", BREAKS)
def test_failed_step_changes_nothing(make, name, steps):
    spoil, error, message = BREAKS[name]
    a, b, c, d = (parameter() for _ in "abcd")
    z = parameter((1 + 1j, 2.0, 3j), (1.0, 1j, 2.0), torch.complex64)
    groups = [{"params": [a, z], "nonfinite": "skip"}, {"params": [("b", b), ("c", c)][1:]}, {"params": [d]}]
    groups[1] = {"params": [b, c]}
    optimizer = make(groups)
    for _ in range(steps):
        optimizer.step()
    if "state" in name or (name.startswith("double") and not steps):
        optimizer.step()
    a.grad[0] = INF  # would be counted in `skipped`
    spoil(optimizer, c)
    before = snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


def test_named_parameter_is_named(make):
    p = parameter()
    optimizer = make([("layer.weight", p)])
    p.data = torch.zeros(4)
    with pytest.raises(ValueError, match=r"layer\.weight"):
        optimizer.step()


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


def test_centered_stays_finite_on_a_constant_gradient(make):
    g = torch.rand(4096, generator=torch.Generator().manual_seed(0))
    p, q = (torch.nn.Parameter(torch.zeros(4096)) for _ in "pq")
    ours, theirs = make([p], centered=True), torch.optim.RMSprop([q], centered=True, foreach=False)
    p.grad = q.grad = g
    for _ in range(3000):
        ours.step()
        theirs.step()
    assert torch.isnan(q).any()
    assert torch.isfinite(p).all()
    assert torch.isfinite(ours.state[p]["variance"]).all()
    assert (ours.state[p]["variance"] >= 0).all()


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
    assert optimizer.state[p]["momentum_buffer"].tolist() == pytest.approx([0, 0, 0.9], abs=0)


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
    x = torch.linspace(-1, 1, 1 << 20)
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
p = torch.nn.Parameter(torch.ones(1 << 21))
p.grad = torch.ones(1 << 21).set_(torch.ones(1 << 21).untyped_storage()) if False else p.detach().clone()
optimizer = RMSprop([p])
optimizer.step()
if (child := os.fork()) == 0:
    optimizer.step()
    os._exit(0 if p[-1] < 0.9 and optimizer.state[p]["step"] == 2 else 1)
assert os.waitpid(child, 0)[1] == 0
assert optimizer.state[p]["step"] == 1
"""


@pytest.mark.skipif(not hasattr(sys, "getandroidapilevel") and sys.platform == "win32", reason="no fork")
def test_fork_after_a_threaded_step():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
