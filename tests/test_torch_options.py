"""Options of `rmsprop.torch.RMSprop`: torch's signature, whose value wins, and what is refused."""

from inspect import Parameter, signature

import pytest
import torch

import rmsprop
from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop, Rprop
from tests.conftest import parameter

INF, NAN = float("inf"), float("nan")
ARGUMENTS = ("alpha", "eps", "weight_decay", "momentum", "centered")


def test_signature_is_torchs_and_then_ours():
    theirs = dict(signature(torch.optim.RMSprop.__init__).parameters)
    ours = dict(signature(RMSprop.__init__).parameters)
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, item in theirs.items():
        assert (ours[name].default, ours[name].kind) == (item.default, item.kind), name
    assert {p.kind for name, p in ours.items() if name not in theirs} == {Parameter.KEYWORD_ONLY}
    p = [torch.nn.Parameter(torch.ones(1))]
    assert RMSprop(p).defaults.items() >= torch.optim.RMSprop(p).defaults.items()


@pytest.mark.parametrize("name", ["lr", *ARGUMENTS])
@pytest.mark.parametrize("dialect", ["graves", "keras", "burn"])
def test_given_argument_wins_even_if_it_is_torchs_default(dialect, name):
    value = signature(torch.optim.RMSprop).parameters[name].default
    p = [torch.nn.Parameter(torch.ones(1))]
    plain, given = (RMSprop(p, dialect=dialect, **options).param_groups[0] for options in ({}, {name: value}))
    assert given == plain | {name: value}
    assert RMSprop(p, 0.01, 0.99, 1e-8, 0, 0, False, dialect="graves").defaults["alpha"] == 0.99
    assert RMSprop(p, dialect="keras", decoupled_weight_decay=False).defaults["decoupled_weight_decay"] is False


BAD_OPTIONS = [
    ("lr", "learning rate", [-1, NAN, INF, True, None, "x", torch.tensor(-1.0), torch.tensor(NAN)]),
    ("alpha", "alpha", [-0.1, 1.0, 1.5, NAN, True, None]),
    ("eps", "epsilon", [-1e-9, NAN, INF, False]),
    ("weight_decay", "weight_decay", [-1, NAN, True, torch.tensor(0.1)]),
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
    with pytest.raises(TypeError, match="rho"):
        make([p], rho=0.9)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_parameter_listed_twice_warns_and_is_stepped_once(make):
    """torch warns, and steps twice."""
    p, alone = parameter(), parameter()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = make([p, p])
    optimizer.step()
    make([alone]).step()
    assert p.tolist() == alone.tolist()
    assert optimizer.state[p]["step"] == 1


def test_a_groups_dialect_is_spelled_out():
    """Its own options win, as at construction; an option left as None is the dialect's, too."""
    optimizer = RMSprop([{"params": [parameter()], "dialect": "keras", "lr": 0.5, "epsilon_mode": None}], dialect="tf1")
    optimizer.add_param_group({"params": [parameter()], "dialect": rmsprop.dialect("graves", momentum=0.5)})
    optimizer.add_param_group({"params": [parameter()], "epsilon_mode": None, "nesterov": None})
    for group, dialect, options in zip(
        optimizer.param_groups, ("keras", "graves", "tf1"), ({"lr": 0.5}, {"momentum": 0.5}, {}), strict=True
    ):
        alone = RMSprop([parameter()], dialect=dialect, **options).param_groups[0]
        assert {k: x for k, x in group.items() if k != "params"} == {k: x for k, x in alone.items() if k != "params"}
    optimizer.step()
    with pytest.raises(ValueError, match="did you mean 'keras'"):
        optimizer.add_param_group({"params": [parameter()], "dialect": "kera"})
    assert len(optimizer.param_groups) == 3


def test_none_turns_a_limit_off_in_a_group():
    assert RMSprop([{"params": [parameter()], "clip": None}], clip=1.0).param_groups[0]["clip"] is None


SLIPS = [(RMSprop, "momentun", "momentum"), (RMSprop, "weigth_decay", "weight_decay"), (RMSprop, "dialects", "dialect")]
SLIPS += [(Rprop, "step_size", "step_sizes"), (Rprop, "maximise", "maximize")]


@pytest.mark.parametrize(("cls", "key", "meant"), SLIPS)
def test_a_slip_in_a_group_is_refused(cls, key, meant):
    message = rf"'{key}' is not an option of a group \(did you mean '{meant}'\?\)"
    with pytest.raises(ValueError, match=message):
        cls([{"params": [parameter()], key: 0.9}])
    optimizer = cls([parameter()])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [parameter()], key: 0.9})
    assert len(optimizer.param_groups) == 1


KEYS = ["name", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "lr_scale", "no_weight_decay", "rho"]


@pytest.mark.parametrize("key", KEYS)
def test_other_keys_of_a_group_stay(key):
    """Of schedulers and trainers: torch allows any."""
    optimizer = RMSprop([{"params": [parameter()], key: 0.5}])
    optimizer.step()
    assert RMSprop(optimizer.param_groups).param_groups[0][key] == 0.5


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"state_shape": "row"}], ids=str)
def test_lazy_parameters(options):
    """They have no shape until the first forward pass, and are checked before the first step."""
    if options.get("fused") and cpu.native is None:
        pytest.skip("no native kernel on this machine")
    results = []
    for cls, own in ((RMSprop, options), (torch.optim.RMSprop, {})):
        torch.manual_seed(0)
        lazy = torch.nn.LazyLinear(3)
        optimizer = cls(lazy.parameters(), lr=0.1, **own)
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        torch.manual_seed(1)
        lazy(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        results.append(lazy.weight.detach())
    torch.testing.assert_close(*results)


def test_what_was_lazy_is_checked_before_its_first_step():
    lazy = torch.nn.LazyLinear(3, dtype=torch.float16)
    optimizer = RMSprop([{"params": list(lazy.named_parameters())}], stochastic_rounding=True)
    lazy.initialize_parameters(torch.ones(2, 4, dtype=torch.float16))
    for p in lazy.parameters():
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in lazy.parameters()]
    with pytest.raises(ValueError, match="weight is float16: stochastic_rounding is for bfloat16"):
        optimizer.step()
    assert not optimizer.state
    assert all(torch.equal(p, x) for p, x in zip(lazy.parameters(), before, strict=True))
