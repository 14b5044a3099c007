"""Options of `rmsprop.torch.RMSprop`: torch's signature, whose value wins, and what is refused."""

from inspect import Parameter, signature

import pytest
import torch

from rmsprop.torch import RMSprop
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
