"""State that is not to be loaded as it stands: of other optimizers, of parameters of one name, of other numbers."""

import copy

import pytest
import torch
from torch.testing import assert_close

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop
from tests.conftest import parameter
from tests.test_torch_loading import exact, named, stepped


@pytest.mark.parametrize("cls", [RMSprop, torch.optim.RMSprop])
@pytest.mark.parametrize("names", [("aa", 2), ("aaa", 3), ("aa", 1), ("aba", 1)], ids=str)
def test_equal_names_go_by_order(names, cls):
    """An actor and a critic both have a "0.weight"; torch.optim restores them."""
    text, groups = names

    def made(kind):
        params = [parameter(grad=[0.1 * k] * 3) for k in range(1, len(text) + 1)]
        pairs = list(zip(text, params, strict=True))
        return kind([{"params": pairs[i::groups], "lr": 0.1 * (i + 1)} for i in range(groups)]), params

    (source, params), (other, others) = made(cls), made(RMSprop)
    source.step()
    for group in other.param_groups:
        group["lr"] = 5.0
    other.load_state_dict(copy.deepcopy(source.state_dict()))
    for p, q in zip(params, others, strict=True):
        assert_close(other.state[q]["square_avg"], source.state[p]["square_avg"], **exact)
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in source.param_groups]
    other.step()


@pytest.mark.parametrize(("theirs", "ours"), [("aab", "aba"), ("aab", "abc"), ("abc", "aab"), ("aab", "aac")])
def test_equal_names_in_another_order_are_refused(theirs, ours):
    optimizers = [RMSprop([(name, parameter()) for name in names]) for names in (theirs, ours)]
    optimizers[0].step()
    with pytest.raises(ValueError, match=r"state_dict: its (groups|parameters) are not this optimizer's"):
        optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert not optimizers[1].state


def test_wrapped_names_that_are_equal_go_by_order():
    names = [("0.weight", "0.weight"), ("module.0.weight", "_orig_mod.0.weight")]
    optimizers = [RMSprop([{"params": [(name, parameter(grad=(k, k, k)))]} for k, name in enumerate(x)]) for x in names]
    optimizers[0].step()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    params = [group["params"][0] for group in optimizers[1].param_groups]
    assert [optimizers[1].state[p]["square_avg"][0].item() for p in params] == [0, pytest.approx(0.01)]
    assert [g["param_names"] for g in optimizers[1].param_groups] == [[name] for name in names[1]]


OTHERS = {
    "Adam": (lambda p: torch.optim.Adam(p, lr=0.1), "exp_avg_sq.* rmsprop.checkpoint converts Adam's"),
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum_buffer"),
    "Adagrad": (torch.optim.Adagrad, "sum"),
    "Rprop": (torch.optim.Rprop, "step_size"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_state_without_the_mean_square_is_refused(name):
    make, words = OTHERS[name]
    source, other = make([("w", parameter())]), RMSprop([("w", parameter())])
    source.step()
    saved = copy.deepcopy(source.state_dict())
    with pytest.raises(ValueError, match=rf"^w: its state has .*{words}") as caught:
        other.load_state_dict(saved)
    assert "expected square_avg among it" in str(caught.value)
    assert not other.state


def test_what_has_no_mean_square_for_a_reason_is_loaded():
    source, _ = stepped("ab", centered=True)
    saved = copy.deepcopy(source.state_dict())
    del saved["state"][0]["square_avg"]  # the variance and the mean say the same
    saved["state"][1] = {"step": torch.tensor(0.0)}
    other, params = named("ab", centered=True)
    other.load_state_dict(saved)
    a, b = params.values()
    assert_close(other.state[a], next(iter(source.state.values())), **exact)
    del saved["state"][1]
    other.load_state_dict(saved)
    other.step()
    assert [int(other.state[p]["step"]) for p in (a, b)] == [4, 1]
    del saved["state"][0]["variance"]
    with pytest.raises(ValueError, match=r"^a: its state has .*expected square_avg"):
        other.load_state_dict(saved)


@pytest.mark.parametrize(
    ("cls", "option"), [(torch.optim.Adam, "betas"), (torch.optim.Adadelta, "rho"), (torch.optim.SGD, "dampening")]
)
def test_groups_of_other_optimizers_are_refused(cls, option):
    saved, other = cls([parameter()], lr=0.1).state_dict(), RMSprop([parameter()], lr=0.5)
    with pytest.raises(ValueError, match=rf"group 0 has \['{option}'\], which are no options of RMSprop"):
        other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.5
    mine = RMSprop([{"params": [parameter()], option: 0.5}])  # torch lets a group have any key
    mine.load_state_dict(mine.state_dict())
    assert mine.param_groups[0][option] == 0.5


@pytest.mark.parametrize(
    ("dtype", "kept", "value"), [(torch.float64, torch.float32, 1e300), (torch.float32, torch.bfloat16, 3.4e38)]
)
def test_numbers_that_the_kept_dtype_cannot_hold_are_refused(dtype, kept, value):
    source = RMSprop([("w", parameter(dtype=dtype))])
    source.step()
    saved = copy.deepcopy(source.state_dict())
    saved["state"][0]["square_avg"][1] = value
    saved["param_groups"][0]["state_dtype"] = kept
    other = RMSprop([("w", parameter())])
    with pytest.raises(ValueError, match=rf"^w: square_avg has numbers that are not finite in {kept}"):
        other.load_state_dict(saved)
    assert not other.state


@pytest.mark.parametrize(("own", "other", "word"), [("complex64", "float32", "complex"), ("float32", "cfloat", "real")])
def test_state_of_the_other_kind_of_number_is_refused(own, other, word):
    optimizer = RMSprop([("w", parameter(dtype=getattr(torch, own)))])
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["square_avg"] = torch.ones(3, dtype=getattr(torch, other))
    with pytest.raises(ValueError, match=f"^w: square_avg is torch.*: expected a {word} tensor"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("fused", [None, False, True] if cpu.native else [None, False])
def test_how_torch_was_to_step_does_not_matter(fused):
    peer, _ = stepped("ab", cls=torch.optim.RMSprop, foreach=True)
    ours, params = named("ab", fused=fused)
    ours.load_state_dict(copy.deepcopy(peer.state_dict()))
    assert (ours.param_groups[0]["foreach"], ours.param_groups[0]["fused"]) == (None, fused)
    ours.step()
    assert ours.state[params["a"]]["step"] == 4
    mine, _ = stepped("ab", foreach=True)
    named_too, _ = named("ab")
    named_too.load_state_dict(mine.state_dict())
    assert named_too.param_groups[0]["foreach"] is True


@pytest.mark.parametrize("state_dtype", [None, torch.float64])
def test_a_mean_square_that_overflows_does_not_hide_the_variance(make, state_dtype):
    """With a mean gradient of 2.5e19 the variance is a number of float32, and the mean square is not."""
    p, q = parameter(), parameter()
    source, other = (make([x], centered=True, momentum=0.9) for x in (p, q))
    source.step()
    source.state[p]["grad_avg"].fill_(2.5e19)
    saved = copy.deepcopy(source.state_dict())
    assert saved["state"][0]["square_avg"].isinf().all()
    saved["param_groups"][0]["state_dtype"] = state_dtype
    other.load_state_dict(saved)
    assert_close(other.state[q]["variance"], source.state[p]["variance"].to(state_dtype or torch.float32), **exact)
    saved["state"][0]["grad_avg"].fill_(0.0)  # which does not explain it
    with pytest.raises(ValueError, match="square_avg has numbers that are not finite"):
        other.load_state_dict(saved)


def test_random_rounding_is_not_loaded_onto_float16():
    source = RMSprop([("w", parameter(dtype=torch.bfloat16))], stochastic_rounding=True)
    other = RMSprop([("w", parameter(dtype=torch.float16))])
    with pytest.raises(ValueError, match=r"^w is float16: stochastic_rounding is for bfloat16"):
        other.load_state_dict(source.state_dict())
    assert other.param_groups[0]["stochastic_rounding"] is False
