"""PyTorch: averaged weights, against torch's own AveragedModel and an average in float64."""

import copy
import io
import os
import pickle
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop, Rprop, averaged
from tests.conftest import parameter

SHAPES = ((5, 7), (3,), (), (0, 2), (40, 30))
needs_native = pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")


def model_of(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return nn.ParameterList([torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in SHAPES])


def feed(optimizer, steps=12, first=0):
    for t in range(first, first + steps):
        generator = torch.Generator().manual_seed(t + 1)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def averages(optimizer):
    return [optimizer.state[p]["weight_avg"] for group in optimizer.param_groups for p in group["params"]]


def rate_fn(gamma):
    return lambda average, p, n: average + (gamma + 1) / (int(n) + 1 + gamma) * (p - average)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("averaging", "gamma"), [(True, 8), (0, 0), (2.5, 2.5)])
def test_equals_torchs_averaged_model(make, averaging, gamma, dtype):
    model = model_of(dtype)
    optimizer = make(model.parameters(), lr=0.1, momentum=0.9, averaging=averaging)
    theirs = AveragedModel(model, avg_fn=rate_fn(gamma))
    for t in range(12):
        feed(optimizer, 1, t)
        theirs.update_parameters(model)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    with optimizer.averaged():
        for p, wanted in zip(model.parameters(), theirs.module.parameters(), strict=True):
            assert_close(p, wanted, rtol=tolerance, atol=tolerance)


CASES = [
    {"dtype": torch.bfloat16},
    {"dtype": torch.float16, "centered": True},
    {"dtype": torch.bfloat16, "stochastic_rounding": True, "seed": 3},
    {"dtype": torch.complex64, "momentum": 0.9},
    {"state_dtype": torch.float64},
    {"state_shape": "row", "momentum": 0.9},
    {"dtype": torch.bfloat16, "state_shape": "row"},
    {"state_dtype": torch.bfloat16, "dtype": torch.bfloat16, "stochastic_rounding": True},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_average_of_the_stored_parameters(make, options):
    """In the dtype of the state, of what each step has left in the parameters, rounded."""
    options = dict(options)
    model = model_of(dtype := options.pop("dtype", torch.float32))
    if dtype.is_complex:
        options.pop("state_shape", None)
    optimizer, wanted = make(model.parameters(), lr=0.1, averaging=True, **options), []
    for t in range(1, 13):
        feed(optimizer, 1, t)
        now = [p.detach().to(torch.promote_types(dtype, torch.float64)) for p in model.parameters()]
        wanted = [a + 9 / (t + 8) * (p - a) for a, p in zip(wanted, now, strict=True)] if wanted else now
    narrow = options.get("state_dtype") == torch.bfloat16
    for p, a, x in zip(model.parameters(), averages(optimizer), wanted, strict=True):
        kept = options.get("state_dtype", torch.promote_types(dtype, torch.float32))
        assert (a.dtype, a.shape, a.requires_grad) == (kept, p.shape, False)
        assert_close(a.to(x.dtype), x, rtol=0.02 if narrow else 1e-5, atol=0.02 if narrow else 1e-6)


@needs_native
@pytest.mark.parametrize("options", [*CASES, {}, {"centered": True, "clip": 0.5}], ids=str)
def test_the_kernel_and_lists_have_the_same_bits(options):
    results = []
    for way in ({}, {"foreach": True}, {"foreach": False, "fused": False}):
        rest = {key: value for key, value in options.items() if key != "dtype"}
        model = model_of(options.get("dtype", torch.float32))
        optimizer = RMSprop(model.parameters(), lr=0.1, averaging=True, **rest, **way)
        feed(optimizer)
        results.append((list(model.parameters()), averages(optimizer)))
    for params, found in results[1:]:
        for p, q, a, b in zip(params, results[0][0], found, results[0][1], strict=True):
            if torch.equal(p, q):  # complex numbers are divided otherwise in lists
                assert torch.equal(a, b)
            assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_are_the_same_with_and_without(make, dtype):
    with_one, without = model_of(dtype), model_of(dtype)
    feed(make(with_one.parameters(), lr=0.1, averaging=True))
    feed(make(without.parameters(), lr=0.1))
    assert all(map(torch.equal, with_one.parameters(), without.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_the_block_holds_averages_and_gives_the_weights_back(make, dtype):
    model, late = model_of(dtype), parameter(dtype=dtype)
    other = parameter(dtype=dtype)
    optimizer = make([{"params": [*model, late]}, {"params": [other], "averaging": False}], lr=0.1, averaging=True)
    for p in model:
        p.grad = torch.ones_like(p)
    late.grad = None
    for _ in range(3):
        optimizer.step()
    optimizer.init_state()
    late.data.fill_(7)  # which its state, made but never stepped, has not seen
    everything = [*model, late, other]
    before = [p.detach().clone() for p in everything]
    kept = [optimizer.state[p]["weight_avg"].clone() for p in model]
    versions, places = [p._version for p in everything], [p.data_ptr() for p in everything]
    with optimizer.averaged():
        assert all(torch.equal(p, a.to(dtype)) for p, a in zip(model, kept, strict=True))
        assert not torch.equal(model[0], before[0])
        if dtype != torch.bfloat16:  # no third copy: they have changed places
            assert torch.equal(optimizer.state[model[0]]["weight_avg"], before[0])
        assert torch.equal(late, before[-2])
        assert torch.equal(other, before[-1])
        assert [p.data_ptr() for p in everything] == places
    assert all(map(torch.equal, everything, before))
    with pytest.raises(KeyError, match="body"), optimizer.averaged():
        raise KeyError("body")
    assert all(map(torch.equal, everything, before))
    assert all(torch.equal(optimizer.state[p]["weight_avg"], a) for p, a in zip(model, kept, strict=True))
    assert all(p._version > v for p, v in zip(model[:1], versions, strict=False))
    feed(optimizer)  # and goes on


def test_what_cannot_be_within_the_block(make):
    p = parameter()
    optimizer = make([p], averaging=True)
    saved = optimizer.state_dict()
    optimizer.step()
    before = p.detach().clone()
    with optimizer.averaged():
        inside = p.detach().clone()
        closed = []
        for what, call in (
            ("step", optimizer.step),
            ("step", lambda: optimizer.step(lambda: closed.append(1))),
            ("averaged", lambda: optimizer.averaged().__enter__()),
            ("state_dict", optimizer.state_dict),
            ("load_state_dict", lambda: optimizer.load_state_dict(saved)),
            ("init_state", optimizer.init_state),
            ("copy", lambda: copy.deepcopy(optimizer)),
            ("copy", lambda: pickle.dumps(optimizer)),
        ):
            with pytest.raises(RuntimeError, match=f"^{what}: the parameters hold their averages"):
                call()
        assert torch.equal(p, inside)
        assert not closed
    assert torch.equal(p, before)
    assert optimizer.state[p]["step"] == 1
    optimizer.step()
    with pytest.raises(ValueError, match=r"averaged: no group averages its weights; expected averaging=True"):
        make([parameter()]).averaged().__enter__()


@pytest.mark.parametrize("options", [{}, {"state_dtype": torch.bfloat16}], ids=str)
def test_a_resumed_run_has_the_same_bits(make, options):
    models = [model_of(torch.bfloat16) for _ in "ab"]
    first = make(models[0].parameters(), lr=0.1, averaging=3.0, stochastic_rounding=True, **options)
    feed(first, 5)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = make(models[1].parameters(), stochastic_rounding=True, **options)
    second.load_state_dict(torch.load(file, weights_only=True))
    models[1].load_state_dict(models[0].state_dict())
    assert second.param_groups[0]["averaging"] == 3.0
    for optimizer in (first, second):
        feed(optimizer, 5, 5)
    assert all(map(torch.equal, averages(first), averages(second)))
    assert {a.dtype for a in averages(second)} == {options.get("state_dtype", torch.float32)}


@pytest.mark.parametrize(("given", "plain"), [(np.float64(2), 2.0), (np.int64(0), 0), (np.bool_(True), True)], ids=repr)
def test_numpys_numbers_are_saved_as_pythons(given, plain):
    file = io.BytesIO()
    torch.save(RMSprop([parameter()], averaging=given).state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)["param_groups"][0]["averaging"]
    assert (saved, type(saved)) == (plain, type(plain))


def test_torch_carries_the_average_and_state_without_one_is_taken(make):
    p = parameter()
    ours = make([p], averaging=True)
    feed(ours, 3)
    theirs = torch.optim.RMSprop([p])
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert torch.equal(theirs.state[p]["weight_avg"], ours.state[p]["weight_avg"])
    theirs.step()
    without = torch.optim.RMSprop([p])
    feed(without, 4)
    again = make([p], averaging=True)
    again.load_state_dict(without.state_dict())
    before = p.detach().clone()
    again.step()  # turned on after 4 steps: from the parameter as it is, at the rate of step 5
    assert_close(again.state[p]["weight_avg"], before + 9 / 13 * (p.detach() - before))


def test_the_option_may_change_between_steps(make):
    """Also between values that Python calls equal: True and 1, False and 0."""
    p = parameter()
    optimizer = make([p])
    group = optimizer.param_groups[0]
    for option, gamma in ((False, None), (0, 0), (False, None), (1, 1), (True, 8), (1, 1), (None, None), (0.0, 0)):
        group["averaging"] = option
        start = optimizer.state.get(p, {}).get("weight_avg", p.detach()).clone()
        feed(optimizer, 1)
        if gamma is None:
            assert "weight_avg" not in optimizer.state[p]
            continue
        rate = (gamma + 1) / (float(optimizer.state[p]["step"]) + gamma)
        assert_close(optimizer.state[p]["weight_avg"], start + rate * (p.detach() - start))
    group["averaging"] = -1
    with pytest.raises(ValueError, match="Invalid averaging value: -1: expected True, False or a finite number"):
        optimizer.step()


def test_loaded_averages_are_checked(make):
    p = parameter()
    optimizer = make([("w", p)], averaging=True)
    feed(optimizer, 2)
    for bad, message in (
        (torch.ones(4), r"w: weight_avg is \(4,\): expected a tensor of its parameter's shape, \(3,\)"),
        (torch.tensor([1.0, float("nan"), 1]), "w: weight_avg has numbers that are not finite where the parameter is"),
        (torch.tensor([1.0, float("inf"), 1]), "w: weight_avg has numbers that are not finite where the parameter is"),
    ):
        saved = optimizer.state_dict()
        saved["state"][0]["weight_avg"] = bad
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(saved)
    with torch.no_grad():
        p[1] = -float("inf")  # a mask
    p.grad = torch.zeros(3)
    fresh = make([p], averaging=True)
    for _ in range(3):
        fresh.step()
    assert fresh.state[p]["weight_avg"].tolist() == p.tolist()
    fresh.load_state_dict(fresh.state_dict())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sparse_gradients_are_refused_unless_dense(make, momentum):
    for sparse in ("exact", "lazy", "dense"):
        table = nn.Embedding(6, 2, sparse=True)
        optimizer = make(table.parameters(), momentum=momentum, averaging=True, sparse=sparse)
        table(torch.tensor([1, 3, 1])).sum().backward()
        before = table.weight.detach().clone()
        if sparse == "dense":
            optimizer.step()
            assert torch.equal(optimizer.state[table.weight]["weight_avg"], table.weight)
            continue
        message = f"parameter 0 of group 0: with averaging=True .*sparse='{sparse}'.*expected sparse='dense'"
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert torch.equal(table.weight, before)
        assert not optimizer.state


def test_rows_that_wait_are_brought_up_to_date_when_averaging_begins(make):
    results = []
    for is_sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(6, 2, sparse=is_sparse)
        optimizer = make(table.parameters(), momentum=0.9)
        if is_sparse:
            optimizer.attach(table)
        for t in range(6):
            if t == 4:
                optimizer.param_groups[0] |= {"averaging": True, "sparse": "dense"}
            optimizer.zero_grad()
            table(torch.tensor([t % 3])).square().sum().backward()
            optimizer.step()
        results.append((table.weight.detach(), optimizer.state[table.weight]["weight_avg"]))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


def test_bad_options():
    for bad in (-1, "yes", float("nan"), float("inf"), torch.ones(2)):
        with pytest.raises(ValueError, match=r"Invalid averaging value: .*expected True, False or a finite number"):
            RMSprop([parameter()], averaging=bad)
    with pytest.raises(ValueError, match=r"averaging and differentiable=True cannot be combined"):
        RMSprop([parameter()], averaging=True, differentiable=True)
    with pytest.raises(TypeError, match="averaging"):
        Rprop([parameter()], averaging=True)
    with pytest.raises(ValueError, match="Invalid averaging value: True: expected False"):
        Rprop([{"params": [parameter()], "averaging": True}])


def test_a_step_left_out_by_the_scaler_does_not_count():
    p = parameter()
    optimizer = RMSprop([p], averaging=True, fused=cpu.native is not None or None)
    feed(optimizer, 2)
    before = optimizer.state[p]["weight_avg"].clone()
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())
    optimizer.step()
    assert torch.equal(optimizer.state[p]["weight_avg"], before)
    optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.tensor(4.0)
    old = p.detach().clone()
    optimizer.step()
    assert_close(optimizer.state[p]["weight_avg"], before + 9 / 11 * (p.detach() - before))
    assert not torch.equal(p, old)


def test_entries_that_are_skipped_average_their_unchanged_parameter(make):
    p = parameter()
    optimizer = make([p], nonfinite="skip", averaging=True)
    feed(optimizer, 2)
    before, average = p.detach().clone(), optimizer.state[p]["weight_avg"].clone()
    p.grad = torch.tensor([float("nan"), 1.0, 1.0])
    optimizer.step()
    assert p[0] == before[0]
    assert_close(optimizer.state[p]["weight_avg"], average + 9 / 11 * (p.detach() - average))


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"capturable": True, "fused": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_in_a_graph_averages(options, dtype):
    if cpu.native is None and not options:
        pytest.skip("no native kernel on this machine")
    torch._dynamo.reset()
    results = []
    for is_compiled in (False, True):
        p = parameter(dtype=dtype)
        optimizer = RMSprop([p], lr=0.1, averaging=1, **options)
        step = torch.compile(optimizer.step, backend="eager", fullgraph=True) if is_compiled else optimizer.step
        for t in range(6):
            if t == 4:
                optimizer.param_groups[0]["averaging"] = True
            p.grad = torch.full_like(p, t - 2.5)
            step()
        results.append((p.detach(), optimizer.state[p]["weight_avg"]))
    assert_close(*results, rtol=1e-6, atol=1e-6)
    if is_compiled:
        with optimizer.averaged(), pytest.raises(Exception, match="step: the parameters hold their averages"):
            step()


@pytest.mark.parametrize("at", range(1, 2 * len(SHAPES)))
def test_ctrl_c_never_leaves_weights_half_exchanged(at, monkeypatch):
    params = model_of()
    optimizer = RMSprop(params, averaging=True)
    feed(optimizer)
    before = [p.detach().clone() for p in (*params, *averages(optimizer))]
    take, calls = averaged._take, []

    def interrupted(p, average):
        kept = take(p, average)
        calls.append(p)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return kept

    monkeypatch.setattr(averaged, "_take", interrupted)
    with pytest.raises(KeyboardInterrupt), optimizer.averaged():
        pass
    for old, new in zip(before, (*params, *averages(optimizer)), strict=True):
        assert torch.equal(old, new.detach())
    feed(optimizer, 1)
