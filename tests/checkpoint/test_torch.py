"""Against the live torch.optim: five steps in one library and five in the other are ten of the rule."""

import copy

import numpy as np
import pytest
import torch

import rmsprop.torch
from rmsprop import RMSprop
from rmsprop.checkpoint import from_adam, from_bitsandbytes, from_torch, of, restore, to_adam, to_torch
from tests.checkpoint.problem import HALF, LR, SHAPES, go_on, gradient, start

OPTIONS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"centered": True, "alpha": 0.9},
    {"momentum": 0.5, "centered": True, "maximize": True, "eps": 1e-3},
]


def tensors(params):
    return {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in params.items()}


def steps(optimizer, params, which):
    dtype = next(iter(params.values())).detach().numpy().dtype
    for t in which:
        for name, g in gradient(t, dtype=dtype).items():
            params[name].grad = torch.from_numpy(g)
        optimizer.step()
    return {name: p.detach().numpy() for name, p in params.items()}


def close(a, b, dtype="f4"):
    for name in SHAPES:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=2.4e-7 if dtype == "f4" else 1e-15)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_from_torch_to_numpy(options, dtype):
    params = tensors(start(dtype=dtype))
    theirs = torch.optim.RMSprop(params.items(), lr=LR, **options)
    at = copy.deepcopy(steps(theirs, params, range(HALF)))
    checkpoint = from_torch(theirs.state_dict())
    after = steps(theirs, params, range(HALF, 2 * HALF))
    close(go_on(checkpoint, at), after, dtype)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_from_numpy_to_torch(options, dtype):
    names = {"alpha": "beta", "eps": "epsilon"}
    params = start(dtype=dtype)
    ours = RMSprop(params, lr=LR, dialect="torch", **{names.get(key, key): x for key, x in options.items()})
    for t in range(HALF):
        ours.step(gradient(t, dtype=dtype))
    moved = tensors(params)
    theirs = torch.optim.RMSprop(moved.items(), lr=1.0)
    restore(theirs, of(ours))
    assert theirs.param_groups[0]["lr"] == LR
    for t in range(HALF, 2 * HALF):
        ours.step(gradient(t, dtype=dtype))
    close(steps(theirs, moved, range(HALF, 2 * HALF)), params, dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_round_trip_has_the_same_bits(options):
    params = tensors(start())
    theirs = torch.optim.RMSprop(params.items(), lr=LR, **options)
    steps(theirs, params, range(HALF))
    before = theirs.state_dict()
    back = to_torch(from_torch(before))
    assert back["param_groups"] == before["param_groups"]
    for i, entry in before["state"].items():
        assert entry.keys() == back["state"][i].keys()
        for key, x in entry.items():
            assert back["state"][i][key].dtype == x.dtype
            assert torch.equal(back["state"][i][key], x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_other_dtypes_have_the_same_numbers(dtype):
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=dtype))
    theirs = torch.optim.RMSprop([("p", p)], lr=LR, momentum=0.9, eps=1e-3)
    for x in (0.25, 0.5):
        p.grad = torch.full_like(p, x)
        theirs.step()
    other = torch.optim.RMSprop([("p", p)], lr=1.0)
    other.load_state_dict(to_torch(from_torch(theirs.state_dict())))
    for key in ("square_avg", "momentum_buffer"):
        assert torch.equal(other.state[p][key], theirs.state[p][key]), key


@pytest.mark.parametrize("form", ["lr_inside", "lr_outside"])
def test_a_buffer_with_lr_inside_is_divided_and_said_so(form):
    params = start()
    ours = RMSprop(params, lr=LR, momentum=0.9, momentum_form=form, epsilon_mode="outside")
    for t in range(HALF):
        ours.step(gradient(t))
    moved = tensors(params)
    theirs = torch.optim.RMSprop(moved.items())
    if form == "lr_inside":
        with pytest.warns(UserWarning, match=r"momentum_buffer: divided by lr=0.01"):
            restore(theirs, of(ours))
    else:
        restore(theirs, of(ours))
    for t in range(HALF, 2 * HALF):
        ours.step(gradient(t))
    close(steps(theirs, moved, range(HALF, 2 * HALF)), params)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}])
def test_adam_without_its_mean_is_rmsprop(options):
    params = tensors(start())
    adam = torch.optim.Adam(params.items(), lr=LR, betas=(0.0, 0.9), eps=1e-6, **options)
    at = copy.deepcopy(steps(adam, params, range(HALF)))
    checkpoint = from_adam(adam.state_dict())
    assert checkpoint.rule.bias_correction
    after = copy.deepcopy(steps(adam, params, range(HALF, 2 * HALF)))
    close(go_on(checkpoint, at), after)
    params = tensors(at)
    fresh = torch.optim.Adam(params.items(), lr=1.0, betas=(0.0, 0.5))
    fresh.load_state_dict(to_adam(checkpoint))
    assert fresh.param_groups[0]["betas"] == (0.0, 0.9)
    close(steps(fresh, params, range(HALF, 2 * HALF)), after)


def test_what_adam_has_beyond_rmsprop_is_refused():
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"betas=\(0.9, 0.999\): Adam is RMSprop only with betas\[0\] = 0"):
        from_adam(torch.optim.Adam([p]).state_dict())
    with pytest.raises(ValueError, match="amsgrad=True"):
        from_adam(torch.optim.Adam([p], betas=(0.0, 0.9), amsgrad=True).state_dict())
    old = torch.optim.AdamW([p], betas=(0.0, 0.9)).state_dict()
    del old["param_groups"][0]["decoupled_weight_decay"]
    with pytest.raises(ValueError, match="decay_mode is not in the groups"):
        from_adam(old)
    assert from_adam(old, decay_mode="decoupled").rule.decay_mode == "decoupled"
    with pytest.raises(ValueError, match="expected Adam's betas"):
        from_adam(torch.optim.RMSprop([p]).state_dict())


def test_ours_keeps_every_option_and_every_group():
    a, b = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    groups = [
        {"params": [("a", a)], "lr": 0.1, "momentum": 0.9, "momentum_form": "ema"},
        {"params": [("b", b)], "centered": True, "epsilon_mode": "both", "decoupled_weight_decay": True},
    ]
    first = rmsprop.torch.RMSprop(groups, lr=0.2, weight_decay=0.1, clip=1.0)
    for p in (a, b):
        p.grad = torch.tensor([1.0, 2.0, 3.0])
    first.step()
    checkpoint = of(first)
    assert [(group.names, group.rule.lr) for group in checkpoint.groups] == [(("a",), 0.1), (("b",), 0.2)]
    second = rmsprop.torch.RMSprop([{"params": [("b", b)]}, {"params": [("a", a)]}])  # the other way round
    restore(second, checkpoint)
    assert [group["lr"] for group in second.param_groups] == [0.2, 0.1]
    assert [group["epsilon_mode"] for group in second.param_groups] == ["both", "outside"]
    for p in (a, b):
        for key, x in first.state[p].items():
            assert torch.equal(second.state[p][key], x), key
    with pytest.raises(ValueError, match="different rules"):
        restore(rmsprop.torch.RMSprop([("a", a), ("b", b)]), checkpoint)


def test_a_checkpoint_does_not_change_with_later_steps():
    params = tensors(start())
    theirs = torch.optim.RMSprop(params.items())
    steps(theirs, params, range(1))
    checkpoint = of(theirs)
    before = checkpoint.state["w"]["square_avg"].copy()
    steps(theirs, params, range(1, 2))
    np.testing.assert_array_equal(checkpoint.state["w"]["square_avg"], before)


def test_parameters_that_have_not_been_stepped_have_no_state():
    params = tensors(start())
    theirs = torch.optim.RMSprop(params.items())
    params["w"].grad = torch.ones(3, 4)
    theirs.step()
    assert to_torch(of(theirs))["state"].keys() == {0}
    with pytest.raises(ValueError, match="b: no state yet"):
        restore(RMSprop(start()), of(theirs))


def test_a_fresh_parameter_elsewhere_starts_elsewhere_and_this_is_said():
    theirs = rmsprop.torch.RMSprop(tensors(start()).items(), dialect="sb3", epsilon_mode="outside")
    with pytest.warns(UserWarning, match="w, b: no state yet; there it starts at 0, not 1"):
        to_torch(of(theirs))


@pytest.mark.parametrize("wrapped", ["optimizer", "optimizer_state_dict", "list"])
def test_wrappers_are_looked_through(wrapped):
    state = torch.optim.RMSprop(tensors(start()).items()).state_dict()
    given = {"optimizer_states": [state], "epoch": 1} if wrapped == "list" else {"model": {}, wrapped: state}
    found = from_torch(given)
    assert found.names == ("w", "b")
    assert "taken from" in found.notes[0]
    with pytest.raises(ValueError, match="found 2 of them"):
        from_torch({"a": state, "b": state})
    with pytest.raises(ValueError, match="found none"):
        from_torch({"a": {"state": {}}})


def test_names_by_position():
    params = tensors(start())
    theirs = torch.optim.RMSprop(params.values())
    steps(theirs, params, range(1))
    state = theirs.state_dict()
    assert from_torch(state).names == ("0", "1")
    named = from_torch(state, names=["w", "b"])
    assert torch.equal(to_torch(named, names=["b", "w"])["state"][1]["square_avg"], state["state"][0]["square_avg"])
    with pytest.raises(ValueError, match="names: 1 of them: expected 2"):
        from_torch(state, names=["w"])
    with pytest.raises(ValueError, match=r"lacks \['c'\] and has \['b'\]"):
        to_torch(named, names=["w", "c"])
    with pytest.raises(ValueError, match=r"positions for names: read it with names=\[...\]"):
        restore(torch.optim.RMSprop(params.items()), from_torch(state))
    restore(torch.optim.RMSprop(params.values()), from_torch(state))


@pytest.mark.parametrize(
    ("library", "options", "message"),
    [
        (
            "torch",
            {"epsilon_mode": "inside"},
            "torch.optim.RMSprop cannot have epsilon_mode='inside': expected 'outside'",
        ),
        ("torch", {"momentum": 0.9, "momentum_form": "ema"}, "momentum_form='ema': expected 'lr_outside'"),
        ("torch", {"momentum": 0.9, "nesterov": True}, "nesterov=True: expected False"),
        ("torch", {"weight_decay": 0.1, "decay_mode": "decoupled"}, "decay_mode='decoupled'"),
        ("torch", {"bias_correction": True}, "bias_correction=True"),
        ("torch", {"clip": 1.0}, "clip=1.0: expected None"),
        ("torch", {"clip_weights": 1.0}, "clip_weights=1.0"),
        ("timm", {}, "timm's RMSpropTF cannot have epsilon_mode='outside': expected 'inside'"),
        ("timm", {"epsilon_mode": "inside", "maximize": True}, "maximize=True"),
        ("sb3", {"epsilon_mode": "inside", "weight_decay": 0.1, "decay_mode": "decoupled"}, "decay_mode"),
        ("adam", {}, "bias_correction=False: expected True"),
        ("adam", {"bias_correction": True, "momentum": 0.9}, "momentum=0.9: expected 0.0"),
        ("jax", {}, "library='jax': expected one of"),
    ],
)
def test_what_a_library_cannot_have_is_refused_by_name(library, options, message):
    ours = RMSprop(start(), **{"epsilon_mode": "outside", **options})
    with pytest.raises(ValueError, match=r"cannot have|expected") as caught:
        to_torch(of(ours), library)
    assert message in str(caught.value)


def test_options_without_effect_do_not_matter():
    ours = RMSprop(start(), epsilon=0.0, momentum_form="lr_inside", decay_mode="decoupled", initial_square=1.0)
    assert to_torch(of(ours))["param_groups"][0]["eps"] == 0
    ours = RMSprop(start(), nonfinite="skip", epsilon_mode="outside")
    with pytest.warns(UserWarning, match="nonfinite='skip': torch.optim.RMSprop lets"):
        to_torch(of(ours))


def test_other_optimizers_are_refused():
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="expected an RMSprop's"):
        from_torch(torch.optim.SGD([p]).state_dict())
    with pytest.raises(ValueError, match="from_adam and from_bitsandbytes read betas"):
        from_torch(torch.optim.Adam([p]).state_dict())
    with pytest.raises(ValueError, match="optimizer=SGD"):
        of(torch.optim.SGD([p]))
    with pytest.raises(ValueError, match="bitsandbytes' betas, and state1"):
        from_bitsandbytes(torch.optim.RMSprop([p]).state_dict())


def test_old_torch_and_stable_baselines_look_alike():
    params = tensors(start())
    state = torch.optim.RMSprop(params.values()).state_dict()
    for key in ("foreach", "maximize", "differentiable", "capturable"):
        del state["param_groups"][0][key]
    with pytest.raises(ValueError, match="expected 'torch' or 'sb3'"):
        from_torch(state)
    assert from_torch(state, library="sb3").rule.epsilon_mode == "inside"
    assert from_torch(state, library="torch").rule.epsilon_mode == "outside"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["square_avg"].neg_(), "w: square_avg has 12 negative numbers"),
        (lambda s: s["square_avg"].fill_(float("nan")), "w: square_avg has 12 numbers that are not finite"),
        (lambda s: s["momentum_buffer"].fill_(float("inf")), "w: momentum_buffer has 12 numbers that are not finite"),
        (lambda s: s.update(step=torch.tensor(-1.0)), "w: step=-1"),
        (lambda s: s.update(step=torch.tensor(0.5)), "w: step=0.5"),
        (lambda s: s.pop("momentum_buffer"), "w: no momentum_buffer, which its rule needs"),
        (lambda s: s.update(momentum_buffer=torch.ones(2)), "w: its arrays have different shapes"),
        (lambda s: s.update(square_avg=torch.ones(3, 4, dtype=int)), "w: square_avg has dtype int64"),
    ],
)
def test_state_that_cannot_be_true_is_refused(change, message):
    params = tensors(start())
    theirs = torch.optim.RMSprop(params.items(), momentum=0.9)
    steps(theirs, params, range(1))
    state = copy.deepcopy(theirs.state_dict())
    change(state["state"][0])
    with pytest.raises(ValueError, match="w: ") as caught:
        from_torch(state)
    assert message in str(caught.value)
    assert from_torch(state, strict=False).faults()[0] == str(caught.value).split(" (and")[0]


def test_shapes_must_fit_before_anything_changes():
    params = tensors(start())
    theirs = torch.optim.RMSprop(params.items(), lr=LR)
    other = {"w": torch.nn.Parameter(torch.ones(4, 3)), "b": torch.nn.Parameter(torch.ones(4))}
    steps(theirs, params, range(1))
    target = torch.optim.RMSprop(other.items(), lr=1.0)
    with pytest.raises(ValueError, match=r"w: square_avg has shape \(3, 4\): expected \(4, 3\), its parameter's"):
        restore(target, of(theirs))
    assert target.param_groups[0]["lr"] == 1.0
    restore(target, of(theirs).mapped(lambda name, x: x.T))
    assert torch.equal(target.state[other["w"]]["square_avg"], theirs.state[params["w"]]["square_avg"].T)
