"""Which saved state belongs to which parameter, what is refused, and state that is made before the first step."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from numpy.testing import assert_array_equal
from torch.testing import assert_close

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop
from tests.conftest import parameter

INF, NAN = float("inf"), float("nan")
exact = {"rtol": 0, "atol": 0}


def named(names, groups=1, cls=RMSprop, **options):
    """An optimizer of parameters with these names, whose gradients tell them apart; dealt over groups in turn."""
    pairs = [(name, parameter(grad=[0.1 * (ord(name) - 96)] * 3)) for name in names]
    return cls([{"params": pairs[i::groups]} for i in range(groups)], **options), dict(pairs)


def stepped(*args, **options):
    optimizer, params = named(*args, **options)
    for _ in range(3):
        optimizer.step()
    return optimizer, params


def loaded_squares(optimizer, params):
    return {name: optimizer.state[p]["square_avg"].tolist() for name, p in params.items()}


@pytest.mark.parametrize("cls", [RMSprop, torch.optim.RMSprop])
def test_state_goes_to_the_parameter_of_its_name(cls):
    source, params = stepped("abc", cls=cls)
    other, others = named("cab")
    other.load_state_dict(source.state_dict())
    assert loaded_squares(other, others) == loaded_squares(source, params)
    assert other.param_groups[0]["param_names"] == ["c", "a", "b"]
    other.step()


def test_groups_are_found_by_their_names():
    source, params = stepped("abcd", groups=2, momentum=0.5)  # a c, b d
    source.param_groups[0]["lr"], source.param_groups[1]["lr"] = 0.1, 0.2
    other, others = named("dcba", groups=2)  # d b, c a
    other.load_state_dict(copy.deepcopy(source.state_dict()))
    assert [group["lr"] for group in other.param_groups] == [0.2, 0.1]
    assert loaded_squares(other, others) == loaded_squares(source, params)
    for name, p in params.items():
        assert_close(other.state[others[name]], source.state[p], **exact)


@pytest.mark.parametrize(
    ("saved", "own", "words"),
    [
        (("abc", 1), ("abd", 1), r"missing \['d'\], unknown \['c'\]"),
        (("ab", 1), ("abc", 1), r"missing \['c'\], unknown \[\]"),
        (("abcd", 2), ("abdc", 2), r"its groups are not this optimizer's"),
    ],
)
def test_other_names_are_refused(saved, own, words):
    source, _ = stepped(saved[0], groups=saved[1])
    other, _ = stepped(own[0], groups=own[1])
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(source.state_dict())
    assert_close(other.state_dict()["state"], before["state"], **exact)


def test_without_names_on_both_sides_the_order_counts():
    for first, second in (("abc", None), (None, "abc")):
        optimizers = []
        for names in (first, second):
            params = [parameter(grad=[0.1 * k] * 3) for k in (1, 2, 3)]
            optimizers.append(RMSprop(list(zip(names, params, strict=True)) if names else params))
            optimizers[-1].step()
        optimizers[1].load_state_dict(optimizers[0].state_dict())
        assert [e["square_avg"] for e in optimizers[1].state.values()] == [
            pytest.approx(e["square_avg"]) for e in optimizers[0].state.values()
        ]


def spoil(key, value):
    return lambda entry: entry.update({key: value if not callable(value) else value(entry[key])})


BROKEN = {
    "shape": (spoil("square_avg", lambda x: x[:2]), r"square_avg is \(2,\): expected .*\(3,\)"),
    "kind": (spoil("grad_avg", [1.0, 2.0, 3.0]), "grad_avg is list"),
    "negative": (spoil("square_avg", lambda x: x - 1), "square_avg has negative numbers, the least -0.9"),
    "negative variance": (spoil("variance", lambda x: x - 1), "variance has negative numbers"),
    "nan": (spoil("momentum_buffer", lambda x: x * NAN), "momentum_buffer has numbers that are not finite"),
    "infinite": (spoil("square_avg", lambda x: x + INF), "square_avg has numbers that are not finite"),
    "negative step": (spoil("step", torch.tensor(-1.0)), "step=.*at least 0"),
    "nan step": (spoil("step", torch.tensor(NAN)), "step="),
    "step of two": (spoil("step", torch.ones(2)), "step="),
    "text for a step": (spoil("step", "3"), "step='3'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_impossible_state_is_refused_by_name(name):
    breaks, words = BROKEN[name]
    source, _ = stepped("ab", centered=True, momentum=0.9)
    saved = copy.deepcopy(source.state_dict())
    breaks(saved["state"][1])
    other, _ = stepped("ab", centered=True, momentum=0.5)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=rf"^b: {words}"):
        other.load_state_dict(saved)
    after = other.state_dict()
    assert_close(after["state"], before["state"], **exact)
    assert after["param_groups"] == before["param_groups"]
    unnamed = RMSprop([parameter(), parameter()])
    with pytest.raises(ValueError, match=r"^parameter 1 of group 0: "):
        unnamed.load_state_dict(saved)


def test_engine_options_stay_where_a_checkpoint_does_not_know_them():
    peer, _ = stepped("ab", cls=torch.optim.RMSprop)
    ours, params = named("ab", state_dtype=torch.bfloat16, seed=3, fused=False)
    ours.load_state_dict(peer.state_dict())
    group = ours.param_groups[0]
    assert (group["state_dtype"], group["seed"], group["fused"]) == (torch.bfloat16, 3, False)
    assert ours.state[params["a"]]["square_avg"].dtype == torch.bfloat16
    ours.step()


def test_state_dtype_is_saved_and_survives():
    ours, params = stepped("ab", state_dtype=torch.float64)
    other, others = named("ab")
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert other.state[others["a"]]["square_avg"].dtype == torch.float64
    assert_close(other.state[others["a"]], ours.state[params["a"]], **exact)


@pytest.mark.parametrize("options", [{}, {"centered": True, "momentum": 0.9, "initial_square": 0.5}], ids=str)
def test_init_state_is_what_a_first_step_finds(make, options):
    early, late = make([parameter()], **options), make([parameter()], **options)
    early.init_state()
    (entry,) = early.state.values()
    assert entry["step"] == 0
    early.step()
    late.step()
    early.init_state()  # changes nothing now
    for a, b in zip(early.state.values(), late.state.values(), strict=True):
        assert_close(a, b, **exact)
    assert_array_equal(*(o.param_groups[0]["params"][0].detach() for o in (early, late)))


@pytest.mark.parametrize("prepare", [RMSprop.init_state, lambda optimizer: None], ids=["init_state", "nothing"])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_asking_a_fresh_optimizer_for_its_state_changes_nothing(prepare, tensor_lr):
    """torch.distributed.checkpoint makes a step with lr 0 and gradients of 0 (pytorch issue 164929)."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    layer = torch.nn.Linear(3, 2)
    before = copy.deepcopy(layer.state_dict())
    lr = torch.tensor(0.1) if tensor_lr else 0.1
    optimizer = RMSprop(layer.parameters(), lr=lr, weight_decay=0.1, momentum=0.9)
    prepare(optimizer)
    state = get_optimizer_state_dict(layer, optimizer)["state"]
    assert state.keys() == {"weight", "bias"}
    for entry in state.values():
        assert entry["step"] == 0
        assert not entry["square_avg"].any()
    assert_close(layer.state_dict(), before, **exact)
    assert optimizer.param_groups[0]["lr"] == lr


def test_a_first_step_with_lr_zero_and_real_gradients_counts(make):
    p = parameter()
    optimizer = make([p], lr=0.0)
    optimizer.step()
    assert optimizer.state[p]["step"] == 1
    assert optimizer.state[p]["square_avg"].any()


SHARED = """
import os, torch
from rmsprop.torch import RMSprop

params = [torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in "pq"]
for p in params:
    p.grad = torch.tensor([0.1, 0.2, -0.3])
optimizer, alone = (RMSprop([p], momentum=0.9, centered=True) for p in params)
params[0].data.share_memory_()
optimizer.share_memory()
assert all(x.is_shared() for x in optimizer.state[params[0]].values())
if (child := os.fork()) == 0:
    optimizer.step()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
alone.step()
torch.testing.assert_close(optimizer.state[params[0]], alone.state[params[1]], rtol=0, atol=0)
assert torch.equal(*params)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.skipif(cpu.native is None, reason="torch's sqrt rounds differently in vectors and alone")
def test_processes_share_state():
    """As workers of A3C do: what one has learned about gradients the others use."""
    subprocess.run([sys.executable, "-c", SHARED], check=True, timeout=60)


def test_what_was_loaded_counts_by_itself():
    """torch hands on the very tensors of the dictionary it is given."""
    source, _ = stepped("ab", bias_correction=True)
    saved = source.state_dict()
    others = [named("ab", bias_correction=True)[0] for _ in "xy"]
    for other in others:
        other.load_state_dict(saved)
    others[0].step()
    assert [int(entry["step"]) for o in (source, *others) for entry in o.state.values()] == [3, 3, 4, 4, 3, 3]


@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("alpha", 2.0), ("seed", -1)])
def test_options_that_no_step_takes_are_not_loaded(name, value):
    source, _ = stepped("ab")
    saved = copy.deepcopy(source.state_dict())
    saved["param_groups"][0][name] = value
    other, _ = stepped("ab", momentum=0.5)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="Invalid"):
        other.load_state_dict(saved)
    assert other.state_dict()["param_groups"] == before["param_groups"]


def test_the_callers_groups_stay_as_they_are():
    groups = [{"params": [parameter()]}]
    RMSprop(groups, lr=1.0)
    assert RMSprop(groups, lr=2.0).param_groups[0]["lr"] == 2
    assert list(groups[0]) == ["params"]
