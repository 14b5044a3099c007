"""State of `rmsprop.torch.RMSprop`: saved, loaded, copied, and exchanged with `torch.optim.RMSprop` both ways."""

import copy
import io
import pickle

import pytest
import torch
from torch.testing import assert_close

OPTIONS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"centered": True, "alpha": 0.9},
    {"centered": True, "momentum": 0.9, "alpha": 0.9, "eps": 1e-4},
]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.bfloat16, torch.float16]
exact = {"rtol": 0, "atol": 0}


def theirs(params, **options):
    return torch.optim.RMSprop(params, **options)


def randn(n, dtype, g):
    return torch.randn(n, dtype=torch.complex128 if dtype.is_complex else torch.float64, generator=g).to(dtype)


def model(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(randn(n, dtype, g)) for n in (33, 5)]


def advance(optimizer, first, last):
    """Steps first .. last - 1 of a fixed sequence of gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(first, last):
        g = torch.Generator().manual_seed(t + 1)
        for p in params:
            p.grad = randn(len(p), p.dtype, g)
        optimizer.step()
    return params


def through_disk(thing):
    memory = io.BytesIO()
    torch.save(thing, memory)
    memory.seek(0)
    return torch.load(memory, weights_only=True)


def moved_to(make, optimizer, params, options):
    """Another optimizer with copies of the parameters and the saved state."""
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = make(others, **options)
    other.load_state_dict(through_disk(optimizer.state_dict()))
    return other, others


@pytest.mark.parametrize("options", [*OPTIONS, {"dialect": "heavyball"}, {"dialect": "graves", "lr": 0.01}], ids=str)
@pytest.mark.parametrize("make", ["native", "foreach"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_resume_is_bit_identical(make, dtype, options):
    whole = make(model(dtype), **options)
    expected = advance(whole, 0, 10)
    first = make(model(dtype), **options)
    params = advance(first, 0, 5)
    kept = dtype if dtype.is_complex else torch.promote_types(dtype, torch.float32)
    for way in ("disk", "pickle", "deepcopy"):
        if way == "disk":
            second, _ = moved_to(make, first, params, options)
        elif way == "pickle":
            second = pickle.loads(pickle.dumps(first))
        else:
            second = copy.deepcopy(first)
        assert second.param_groups[0]["params"][0] is not params[0]
        resumed = advance(second, 5, 10)
        for p, q in zip(expected, resumed, strict=True):
            assert_close(q, p, **exact)
            assert_close(second.state[q], whole.state[p], **exact)
            assert {x.dtype for key, x in second.state[q].items() if key != "step"} == {kept}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_exchange_with_torch_both_ways(make, dtype, options):
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    pure = theirs(model(dtype), **options)
    advance(pure, 0, 30)
    for start, then in ((make, theirs), (theirs, make)):
        optimizer = start(model(dtype), **options)
        params = advance(optimizer, 0, 10)
        optimizer, params = moved_to(then, optimizer, params, options)
        advance(optimizer, 10, 20)
        optimizer, params = moved_to(start, optimizer, params, options)
        advance(optimizer, 20, 30)
        for p, q in zip(params, pure.param_groups[0]["params"], strict=True):
            assert_close(p, q, rtol=tolerance, atol=tolerance)
            assert optimizer.state[p]["step"] == 30


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_saved_state_has_torchs_names(make, options):
    ours, peer = make(model(), **options), theirs(model(), **options)
    advance(ours, 0, 3)
    advance(peer, 0, 3)
    a, b = ours.state_dict(), peer.state_dict()
    for i, entry in b["state"].items():
        assert a["state"][i].keys() - {"variance"} == entry.keys()
        for name, value in entry.items():
            assert_close(a["state"][i][name], value, rtol=1e-5, atol=1e-6)
    assert a["param_groups"][0].keys() >= b["param_groups"][0].keys()
    assert a["param_groups"][0]["params"] == b["param_groups"][0]["params"]


def test_variance_survives_where_the_mean_square_cannot_hold_it(make):
    """At a mean gradient of 0.1 and a variance of 1e-10, `square_avg` alone would lose half of the variance."""
    ours = make([torch.nn.Parameter(torch.zeros(1000))], centered=True, alpha=0.9)
    (p,) = ours.param_groups[0]["params"]
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        p.grad = 0.1 + 1e-5 * torch.randn(1000, generator=g)
        ours.step()
    saved = through_disk(ours.state_dict())
    entry, v = saved["state"][0], ours.state[p]["variance"]
    # Two roundings and no fused multiply-add, or another processor would take our own variance for a stale one.
    assert_close(entry["square_avg"], entry["variance"] + entry["grad_avg"] * entry["grad_avg"], **exact)
    lost = (entry["square_avg"] - entry["grad_avg"] ** 2).clamp_min(0)
    assert ((lost - v).abs() > 0.1 * v).any()
    other = make([torch.nn.Parameter(torch.zeros(1000))], centered=True)
    other.load_state_dict(saved)
    assert_close(other.state[other.param_groups[0]["params"][0]]["variance"], v, **exact)


def test_stale_variance_is_not_used(make):
    ours = make(model(), centered=True, alpha=0.5)
    params = advance(ours, 0, 5)
    peer, peers = moved_to(theirs, ours, params, {"centered": True, "alpha": 0.5})
    before = [peer.state[q]["variance"].clone() for q in peers]
    advance(peer, 5, 9)
    back, params = moved_to(make, peer, peers, {"centered": True, "alpha": 0.5})
    for p, q, v in zip(params, peers, before, strict=True):
        assert_close(peer.state[q]["variance"], v, **exact)  # torch has carried it along
        s, m = peer.state[q]["square_avg"], peer.state[q]["grad_avg"]
        assert_close(back.state[p]["variance"], (s - m * m).clamp_min(0), **exact)
        assert "square_avg" not in back.state[p]


def test_torchs_negative_variance_is_loaded_as_zero(make):
    peer = theirs(model(), centered=True)
    params = advance(peer, 0, 2)
    for entry in peer.state.values():
        entry["square_avg"] = (entry["grad_avg"] ** 2 - 1e-6).clamp_min(0)
    ours, params = moved_to(make, peer, params, {"centered": True, "eps": 1e-4})
    assert all((ours.state[p]["variance"] == 0).all() for p in params)
    advance(ours, 2, 4)
    assert all(torch.isfinite(p).all() for p in params)


def test_sixteen_bit_state_of_torch_becomes_float32(make):
    peer = theirs(model(torch.bfloat16), momentum=0.9)
    params = advance(peer, 0, 3)
    assert peer.state[params[0]]["square_avg"].dtype == torch.bfloat16
    ours, params = moved_to(make, peer, params, {"momentum": 0.9})
    assert {ours.state[p][k].dtype for p in params for k in ("square_avg", "momentum_buffer")} == {torch.float32}
    advance(ours, 3, 5)


def test_loaded_groups_and_options_torch_does_not_know(make):
    peer = theirs(model(), lr=0.3, alpha=0.5)
    params = advance(peer, 0, 2)
    ours, _ = moved_to(make, peer, params, {"dialect": "keras"})
    group = ours.param_groups[0]
    loaded = {"lr": 0.3, "alpha": 0.5, "epsilon_mode": "outside", "decoupled_weight_decay": False}
    assert group.items() >= loaded.items()
    dialect, _ = moved_to(make, make(model(), dialect="keras"), params, {})
    assert dialect.param_groups[0]["epsilon_mode"] == "inside"


def test_step_that_is_a_number(make):
    """State of torch before 1.12 counts in an int."""
    peer = theirs(model())
    params = advance(peer, 0, 3)
    saved = copy.deepcopy(peer.state_dict())
    for entry in saved["state"].values():
        entry["step"] = 3
    ours = make([torch.nn.Parameter(p.detach().clone()) for p in params])
    ours.load_state_dict(saved)
    advance(peer, 3, 5)
    for p, q in zip(advance(ours, 3, 5), params, strict=True):
        assert_close(p, q)
        assert ours.state[p]["step"] == 5


def test_hooks_on_saving_and_loading(make):
    ours = make(model(), centered=True)
    advance(ours, 0, 3)
    saved = copy.deepcopy(ours.state_dict())
    a, b = make(model(), centered=True), make(model(), centered=True)
    a.register_load_state_dict_pre_hook(
        lambda _, sd: {**sd, "state": {i: {k: v * 2 for k, v in e.items()} for i, e in sd["state"].items()}}
    )
    for other in (a, b):
        other.load_state_dict(saved)
    for p, q in zip(a.state, b.state, strict=True):
        assert_close(a.state[p]["grad_avg"], 2 * b.state[q]["grad_avg"], **exact)
    b.register_load_state_dict_post_hook(
        lambda o: [e.update(grad_avg=e["grad_avg"] * 0) for e in o.state.values()] and None
    )
    b.load_state_dict(saved)
    assert all((entry["grad_avg"] == 0).all() and "square_avg" not in entry for entry in b.state.values())
    ours.register_state_dict_post_hook(lambda _, sd: {**sd, "note": 1})
    assert ours.state_dict()["note"] == 1
    assert "square_avg" in ours.state_dict()["state"][0]


def test_count_of_skipped_entries_is_copied(make):
    ours = make(model(), nonfinite="skip")
    ours.param_groups[0]["params"][0].grad = torch.full((33,), float("inf"))
    ours.step()
    assert [o.skipped for o in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)))] == [33, 33, 33]


def test_nothing_saved_is_shared_or_changed(make):
    """Saving writes nothing; loading does not touch the dictionary it is given."""
    ours = make(model(), centered=True, momentum=0.9)
    params = advance(ours, 0, 3)
    before = copy.deepcopy(dict(ours.state))
    saved = copy.deepcopy(ours.state_dict())
    assert all("square_avg" not in ours.state[p] for p in params)
    for p, entry in zip(params, before.values(), strict=True):
        assert_close(ours.state[p], entry, **exact)
    keys = [entry.keys() for entry in saved["state"].values()]
    other = make(model(), centered=True)
    other.load_state_dict(saved)
    assert [entry.keys() for entry in saved["state"].values()] == keys
    assert_close(saved["state"], ours.state_dict()["state"], **exact)
    assert other.param_groups[0]["momentum"] == 0.9
