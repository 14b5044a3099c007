"""What every torch optimizer promises, kept by `rmsprop.torch.Rprop`; what it shares with `RMSprop` is tested there."""

import copy
import inspect
import io
import pickle
import re
from threading import Thread

import numpy as np
import pytest
import torch

from rmsprop.kernels import cpu
from rmsprop.torch import Rprop
from tests.conftest import parameter
from tests.test_torch_rprop import make, step, tensors, twins  # noqa: F401

needs_native = pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_signature_and_defaults_are_torchs():
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (Rprop, torch.optim.Rprop))
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].kind == p.kind and ours[name].default == p.default for name, p in theirs.items())
    group, other = (cls([parameter()]).param_groups[0] for cls in (Rprop, torch.optim.Rprop))
    assert {name: group[name] for name in other if name != "params"} == {
        k: v for k, v in other.items() if k != "params"
    }


REFUSED = [
    ({"lr": torch.tensor([0.1, 0.2])}, ValueError, "Tensor lr must be 1-element"),
    ({"lr": -1}, ValueError, "Invalid learning rate: -1"),
    ({"etas": (1.0, 0.5)}, ValueError, "Invalid eta values: 1.0, 0.5: expected"),
    ({"etas": 0.5}, ValueError, "Invalid etas value: 0.5: expected two numbers"),
    ({"step_sizes": (1, 0.5)}, ValueError, re.escape("Invalid step_sizes value: (1, 0.5): expected")),
    ({"variant": "plus"}, ValueError, "Invalid variant value: 'plus': expected one of"),
    ({"variant": "rprop+", "dialect": "optax"}, ValueError, "Invalid variant value: 'rprop\\+'"),
    ({"dialect": "keras"}, ValueError, "Invalid dialect value: 'keras'"),
    ({"maximize": 1}, ValueError, "Invalid maximize value: 1"),
    ({"foreach": True, "differentiable": True}, ValueError, "foreach value: True"),
    ({"fused": True, "foreach": True}, RuntimeError, "`fused` and `foreach` cannot be `True` together."),
    ({"fused": 1}, ValueError, "Invalid fused value: 1"),
    ({"seed": -1}, ValueError, "Invalid seed value: -1"),
]


@pytest.mark.parametrize(("options", "kind", "words"), REFUSED, ids=str)
def test_what_cannot_be_is_refused_at_construction(options, kind, words):
    with pytest.raises(kind, match=words):
        Rprop([parameter()], **options)


def test_irprop_plus_wants_the_loss(make):  # noqa: F811
    p = parameter()
    optimizer = make([p], variant="irprop+")
    before = p.detach().clone()
    for closure, words in ((None, "got None"), (lambda: None, "got None"), (lambda: float("nan"), "got nan")):
        with pytest.raises(ValueError, match=rf"^variant='irprop\+': step\(closure\).*{words}"):
            optimizer.step(closure)
    assert torch.equal(p, before)
    assert not optimizer.state
    assert optimizer.param_groups[0]["last_loss"] is None
    optimizer.step(lambda: torch.tensor(3.0))
    assert optimizer.param_groups[0]["last_loss"] == 3.0


@pytest.mark.parametrize("grad", [1.0, 0.0])
def test_lr_0_does_not_take_the_place_of_a_loss(make, grad):  # noqa: F811
    """Only a step that asks for state, with gradients of 0 everywhere, needs none."""
    p, other = parameter(grad=(grad, grad, grad)), parameter()
    other.grad = torch.full_like(other, 1 - grad)
    before = p.detach().clone(), other.detach().clone()
    optimizer = make([{"params": [p]}, {"params": [other], "variant": "irprop-"}], lr=0.0, variant="irprop+")
    with pytest.raises(ValueError, match=r"^variant='irprop\+': step\(closure\).*got None"):
        optimizer.step()
    assert torch.equal(p, before[0])
    assert torch.equal(other, before[1])
    assert not optimizer.state
    other.grad.zero_()
    p.grad.zero_()
    optimizer.step()
    assert optimizer.state[p]["step"] == 0


def test_a_loss_is_one_real_number_of_any_shape():
    optimizer = Rprop([parameter()], variant="irprop+")
    for loss in (torch.tensor([3.0], requires_grad=True), torch.tensor([[3.0]])):
        optimizer.step(lambda: loss)  # noqa: B023
        assert optimizer.param_groups[0]["last_loss"] == 3.0
    for bad in (torch.tensor(1 + 1j), torch.tensor(1 + 0j), 1 + 1j, torch.ones(2)):
        with pytest.raises(ValueError, match=r"^variant='irprop\+': .* one real number that is not NaN; got "):
            optimizer.step(lambda: bad)  # noqa: B023
    assert optimizer.param_groups[0]["last_loss"] == 3.0


def test_numpys_numbers_are_saved_as_pythons():
    optimizer = Rprop([parameter()], etas=[np.float64(0.5), 1.2], step_sizes=(1e-6, np.float32(4)))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    (saved,) = torch.load(file, weights_only=True)["param_groups"]
    assert (saved["etas"], saved["step_sizes"]) == ((0.5, 1.2), (1e-6, 4.0))


def test_a_step_that_raises_has_changed_nothing(make):  # noqa: F811
    """A gradient that does not fit, after one that does; with a loss that counts only if the step is made."""
    p, q = parameter(), parameter()
    optimizer = make([p, q], variant="irprop+")
    optimizer.step(lambda: 1.0)
    optimizer.state[q]["prev"] = torch.zeros(2)
    before, state = p.detach().clone(), copy.deepcopy(optimizer.state[p])
    version = p._version
    with pytest.raises((ValueError, TypeError)):
        optimizer.step(lambda: 0.5)
    assert torch.equal(p, before)
    assert p._version == version
    assert all(torch.equal(optimizer.state[p][key], value) for key, value in state.items())
    assert optimizer.param_groups[0]["last_loss"] == 1.0


def test_no_gradient_and_gradients_of_zero_move_nothing(make):  # noqa: F811
    own, idle = parameter(grad=(0.0, 0.0, 0.0)), parameter()
    idle.grad = None
    optimizer = make([own, idle])
    before = own.detach().clone()
    optimizer.step()
    assert torch.equal(own, before)
    assert not optimizer.state.get(idle)
    assert optimizer.state[own]["step"] == 1


def test_version_counters_move_and_gradients_do_not_change(make):  # noqa: F811
    p = parameter()
    grad, version = p.grad.clone(), p._version
    make([p]).step()
    assert p._version > version
    assert torch.equal(p.grad, grad)


def test_hooks_and_profilers(make):  # noqa: F811
    seen = []
    optimizer = make([parameter()])
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step()
    assert seen == ["before", "after"]
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    assert any("Rprop.step" in event.name for event in profile.function_events)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_given_twice_takes_one_step(make):  # noqa: F811
    p, q = parameter(), parameter()
    make([p, p]).step()
    make([q]).step()
    assert torch.equal(p, q)


def test_a_refused_group_is_not_taken():
    optimizer = Rprop([parameter()])
    with pytest.raises(ValueError, match="float16"):
        optimizer.add_param_group({"params": [parameter(dtype=torch.float16)], "stochastic_rounding": True})
    with pytest.raises(ValueError, match="Invalid eta values: 2, 3"):
        optimizer.add_param_group({"params": [parameter()], "etas": (2, 3)})
    with pytest.raises(ValueError, match="Invalid sparse value: 'exact': expected 'dense'"):
        optimizer.add_param_group({"params": [parameter()], "sparse": "exact"})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("way", ["copy", "pickle", "save"])
def test_copies_go_on_as_the_original(make, way):  # noqa: F811
    params, rows = tensors(0, torch.float32)
    optimizer = make(params, etas=(0.4, 1.4))
    for row in rows[:5]:
        step(optimizer, row)
    if way == "save":
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        other = make(twins(params))
        other.load_state_dict(torch.load(file))
    else:
        other = copy.deepcopy(optimizer) if way == "copy" else pickle.loads(pickle.dumps(optimizer))
    for row in rows[5:]:
        step(optimizer, row)
        step(other, row)
    for p, q in zip(params, other.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)


def test_state_goes_to_parameters_by_name():
    names = ["a", "b", "c"]
    params, rows = tensors(0, torch.float32)
    one = Rprop(list(zip(names, params, strict=True)))
    for row in rows[:5]:
        step(one, row)
    others = twins(params)
    two = Rprop(list(zip(names, others, strict=True))[::-1])
    two.load_state_dict(one.state_dict())
    for row in rows[5:]:
        step(one, row)
        step(two, row[::-1])
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


BAD = {
    "step_size": (torch.tensor([1.0, -1.0, 1.0]), "step_size has negative numbers, the least -1.0"),
    "prev": (torch.ones(2), "prev is .*expected a tensor of its parameter's shape"),
    "step": (-3, "step=-3: expected one number of at least 0"),
}


@pytest.mark.parametrize(("key", "value", "words"), [(k, *v) for k, v in BAD.items()], ids=BAD)
def test_damaged_state_is_refused(key, value, words):
    optimizer = Rprop([parameter()])
    optimizer.step()
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["state"][0][key] = value
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(damaged)
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["state"][0]["prev"] = torch.tensor(
        [float("nan"), float("inf"), 0.0]
    )  # as torch leaves it, after such a gradient
    optimizer.load_state_dict(damaged)
    optimizer.step()


def test_another_optimizers_state_is_not_taken_for_ours(make):  # noqa: F811
    """Step sizes are made anew, and the foreign state is carried along."""
    p = parameter()
    foreign = torch.optim.RMSprop([p])
    foreign.step()
    saved = foreign.state_dict()
    optimizer = make([p])
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert {"step_size", "prev"} <= optimizer.state[p].keys()


def test_threads_take_turns(make):  # noqa: F811
    p = torch.nn.Parameter(torch.zeros(2000))
    p.grad = torch.ones(2000)
    optimizer = make([p], etas=(0.5, 1.0001))
    threads = [Thread(target=lambda: [optimizer.step() for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert optimizer.state[p]["step"] == 80
    assert len(p.unique()) == 1


def test_grad_scaler_leaves_the_signs_alone(make):  # noqa: F811
    params, rows = tensors(0, torch.float32)
    peers = twins(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    ours, theirs = make(params), make(peers)
    for t, row in enumerate(rows):
        step(theirs, row) if t != 3 else None
        for p, g in zip(params, row, strict=True):
            p.grad = g * 2.0**10 if t != 3 else g * float("inf")
        scaler.scale(torch.ones(()))  # makes its scale
        scaler.step(ours)
        scaler._per_optimizer_states.clear()
    for p, q in zip(params, peers, strict=True):
        assert torch.equal(p, q)


@needs_native
def test_grad_scaler_with_fused():
    """The step itself divides, and does nothing where an entry is infinite."""
    params, rows = tensors(0, torch.float32)
    peers = twins(params)
    ours, theirs = Rprop(params, fused=True), torch.optim.Rprop(peers)
    assert ours._step_supports_amp_scaling
    assert not Rprop(params)._step_supports_amp_scaling
    for t, row in enumerate(rows):
        ours.grad_scale, ours.found_inf = torch.tensor(1024.0), torch.tensor(float(t == 3))
        step(ours, [g * 1024 for g in row])
        if t != 3:
            step(theirs, row)
    for p, q in zip(params, peers, strict=True):
        assert torch.equal(p, q)


def test_fused_wants_the_kernel(monkeypatch):
    monkeypatch.setattr(cpu, "native", None)
    with pytest.raises(RuntimeError, match="`fused=True` requires"):
        Rprop([parameter()], fused=True)


def test_state_is_made_as_distributed_checkpoint_asks(make):  # noqa: F811
    """lr 0 and gradients of 0: not a step."""
    for variant in ("irprop-", "irprop+"):
        p = parameter(grad=(0.0, 0.0, 0.0))
        optimizer = make([p], lr=0.0, variant=variant)
        optimizer.step()
        assert optimizer.state[p]["step"] == 0
        assert {"prev", "step_size"} <= optimizer.state[p].keys()


def test_schedulers_take_it(make):  # noqa: F811
    optimizer = make([parameter()])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    schedule.step()


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
@needs_native
@pytest.mark.parametrize("options", [{}, {"variant": "rprop+"}, {"step_sizes": (0, float("inf"))}], ids=str)
@pytest.mark.parametrize("way", [{}, {"foreach": True}], ids=str)
def test_compiled_steps(fresh_compiler, options, way):
    params, rows = tensors(0, torch.float32)
    peers = twins(params)
    ours, eager = Rprop(params, **options, **way), Rprop(peers, **options)
    compiled = torch.compile(ours.step, fullgraph=True, backend="aot_eager")
    for row in rows[:8]:
        for p, g in zip(params, row, strict=True):
            p.grad = g
        compiled()
        step(eager, row)
    for p, q in zip(params, peers, strict=True):
        assert torch.equal(p, q)
        assert ours.state[p]["step"] == 8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_graph_cannot_wait_for_the_loss(fresh_compiler, fullgraph):
    """Where a graph may break, it does, and the step is made outside."""
    optimizer = Rprop([parameter()], variant="irprop+")
    compiled = torch.compile(optimizer.step, backend="aot_eager", fullgraph=fullgraph)
    if fullgraph:
        with pytest.raises(Exception, match="cannot wait for the loss"):
            compiled(lambda: 1.0)
        return
    compiled(lambda: 1.0)
    assert optimizer.param_groups[0]["last_loss"] == 1.0


def test_the_step_that_a_cuda_graph_would_capture(monkeypatch):
    """No GPU here: the same code, run on the CPU one operation after the other."""
    monkeypatch.setattr(Rprop, "_is_captured", lambda self: True)
    params, rows = tensors(0, torch.float64)
    peers = twins(params)
    ours, theirs = Rprop(params, capturable=True, fused=False), torch.optim.Rprop(peers)
    for row in rows:
        step(ours, row)
        step(theirs, row)
    for p, q in zip(params, peers, strict=True):
        assert torch.equal(p, q)
