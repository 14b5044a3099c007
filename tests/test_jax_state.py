"""The state of the JAX front end as a plain dict, which is the NumPy front end's."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import rmsprop.jax
from rmsprop.numpy import RMSprop
from tests.cases import RULES, gradients, parameter

SAME = {name: RULES[name] for name in ("plain", "centered", "momentum inside", "everything")}


def trained(rule, grads):
    """A NumPy optimizer and a transformation after the same steps."""
    w = parameter(9, np.float32)
    numpy, params = RMSprop({"w": w}, rule), {"w": jnp.asarray(w.copy())}
    tx = rmsprop.jax.rmsprop(None, dialect=rule)
    state = tx.init(params)
    for g in grads:
        numpy.step({"w": g})
        updates, state = tx.update({"w": g}, state, params)
        params = optax.apply_updates(params, updates)
    return numpy, w, tx, params, state


@pytest.mark.parametrize("rule", SAME.values(), ids=SAME)
def test_training_goes_on_in_the_other_front_end(rule):
    grads = gradients(9, np.float32, steps=6)
    numpy, w, tx, params, state = trained(rule, grads[:3])
    moved = rmsprop.jax.load_state_dict(tx.init(params), numpy.state_dict())
    back = RMSprop({"w": np.array(params["w"])})
    back.load_state_dict(rmsprop.jax.state_dict(state, rule))
    assert back.rule == rule
    assert int(moved.count) == back.state_dict()["state"]["params['w']"]["step"] == 3
    for g in grads[3:]:
        numpy.step({"w": g})
        back.step({"w": g})
        updates, moved = tx.update({"w": g}, moved, params)
        params = optax.apply_updates(params, updates)
    assert_allclose(params["w"], w, 1e-5, 1e-6)
    assert_allclose(back._params[0], w, 1e-5, 1e-6)


def test_numbers_survive_the_round_trip_bit_for_bit():
    rule = SAME["everything"]
    *_, tx, params, state = trained(rule, gradients(9, np.float32))
    again = rmsprop.jax.load_state_dict(tx.init(params), rmsprop.jax.state_dict(state, rule))
    jax.tree.map(assert_array_equal, again._replace(skipped=0), state._replace(skipped=0))
    assert jax.tree.map(lambda x: x.dtype, again) == jax.tree.map(lambda x: x.dtype, state)


def test_names_of_nested_trees():
    params = {"layers": [{"w": jnp.ones(2)}, {"w": jnp.ones(3)}]}
    rule = SAME["plain"]
    state = rmsprop.jax.rmsprop(None, dialect=rule).init(params)
    saved = rmsprop.jax.state_dict(state, rule)
    assert list(saved["state"]) == ["params['layers'][0]['w']", "params['layers'][1]['w']"]
    assert_array_equal(rmsprop.jax.load_state_dict(state, saved).nu["layers"][1]["w"], np.zeros(3))


def change(path, value):
    def apply(saved):
        *parents, last = path
        for key in parents:
            saved = saved[key]
        saved[last] = value

    return apply


def one_more_step(saved):
    saved["state"]["params['u']"]["step"] = 7


def no_slot(saved):
    del saved["state"]["params['w']"]["square_avg"]


W = ("state", "params['w']")
REFUSED = {
    r"expected format=1": change(("format",), 2),
    r"parameters at steps \[0, 7\]": one_more_step,
    r"params\['w'\] has \['step'\]: expected \['square_avg', 'step'\]": no_slot,
    r"square_avg of params\['w'\] has shape \(3,\): expected \(2,\)": change((*W, "square_avg"), np.ones(3)),
    r"square_avg of params\['w'\]: expected finite numbers of at least 0": change((*W, "square_avg"), -np.ones(2)),
    r"unknown \[\"params\['v'\]\"\]": change(("state", "params['v']"), {"step": 0, "square_avg": np.ones(2)}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused(message):
    rule = SAME["plain"]
    state = rmsprop.jax.rmsprop(None, dialect=rule).init({"w": jnp.ones(2), "u": jnp.ones(2)})
    saved = copy.deepcopy(rmsprop.jax.state_dict(state, rule))
    REFUSED[message](saved)
    with pytest.raises(ValueError, match=message):
        rmsprop.jax.load_state_dict(state, saved)


def test_the_state_of_another_rule():
    state = rmsprop.jax.rmsprop(0.1).init(jnp.ones(2))
    with pytest.raises(ValueError, match="its trace is None, but the rule keeps momentum_buffer"):
        rmsprop.jax.state_dict(state, SAME["momentum inside"])
