"""Against the live optax, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop.jax
from rmsprop import RMSprop
from rmsprop.checkpoint import arguments, from_numpy, from_optax, of, restore, to_numpy, to_optax
from rmsprop.checkpoint.optax import leaves
from tests.checkpoint.problem import HALF, LR, SHAPES, go_on, gradient, start

OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "eps_in_sqrt": False, "eps": 1e-4},
    {"bias_correction": True, "decay": 0.99, "initial_scale": 1.0},
    {"centered": True, "momentum": 0.5, "eps": 1e-3},
]


def nested(flat):
    return {"dense": {"kernel": jnp.array(flat["w"])}, "bias": [jnp.array(flat["b"])]}


def flat(tree):
    return {"w": np.array(tree["dense"]["kernel"]), "b": np.array(tree["bias"][0])}


def named(checkpoint):
    return checkpoint.renamed({"dense.kernel": "w", "bias.0": "b"})


def steps(tx, params, state, which):
    for t in which:
        updates, state = tx.update(nested(gradient(t)), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def close(a, b):
    for name in SHAPES:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=2.4e-7)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_from_optax(options):
    tx = optax.rmsprop(LR, **options)
    params = nested(start())
    at, state = steps(tx, params, tx.init(params), range(HALF))
    checkpoint = named(from_optax(state, learning_rate=LR, step=HALF, **options))
    after, _ = steps(tx, at, state, range(HALF, 2 * HALF))
    close(go_on(checkpoint, flat(at)), flat(after))
    assert checkpoint.step == HALF


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_to_optax(options):
    renamed = {"decay": "beta", "eps": "epsilon", "initial_scale": "initial_square"}
    ours = {renamed.get(key, key): x for key, x in options.items() if key != "eps_in_sqrt"}
    params = start()
    mode = "inside" if options.get("eps_in_sqrt", True) else "outside"
    optimizer = RMSprop(params, dialect="optax", lr=LR, epsilon_mode=mode, **ours)
    for t in range(HALF):
        optimizer.step(gradient(t))
    checkpoint = of(optimizer).renamed({"w": "dense.kernel", "b": "bias.0"})
    tx = optax.rmsprop(**arguments(checkpoint.rule, "optax"))
    at = nested(params)
    after, state = steps(tx, at, to_optax(checkpoint, tx.init(at)), range(HALF, 2 * HALF))
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(at))
    for t in range(HALF, 2 * HALF):
        optimizer.step(gradient(t))
    close(flat(after), params)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_round_trip_has_the_same_bits(options):
    tx = optax.rmsprop(LR, **options)
    params = nested(start())
    _, state = steps(tx, params, tx.init(params), range(HALF))
    back = to_optax(from_optax(state, learning_rate=LR, **options), tx.init(params))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_inside_a_chain_with_a_schedule():
    schedule = optax.exponential_decay(LR, 1, 0.9)
    tx = optax.chain(optax.clip_by_global_norm(1e6), optax.rmsprop(schedule, momentum=0.9))
    params = nested(start())
    _, state = steps(tx, params, tx.init(params), range(HALF))
    checkpoint = from_optax(state, learning_rate=float(schedule(HALF)), momentum=0.9)
    assert checkpoint.step == HALF  # the schedule has counted
    back = to_optax(checkpoint, tx.init(params))
    assert int(leaves(back)["[1][1].count"]) == HALF
    np.testing.assert_array_equal(leaves(back)["[1][2].trace['bias'][0]"], leaves(state)["[1][2].trace['bias'][0]"])


def test_injected_options_are_read():
    tx = optax.inject_hyperparams(optax.rmsprop)(learning_rate=LR, decay=0.8, eps=1e-3, momentum=0.5)
    checkpoint = from_optax(tx.init(nested(start())))
    assert [round(x, 6) for x in (checkpoint.rule.lr, checkpoint.rule.beta, checkpoint.rule.momentum)] == [LR, 0.8, 0.5]
    assert checkpoint.rule.epsilon == np.float32(1e-3)


def test_what_the_state_does_not_tell():
    tree = nested(start())
    with pytest.raises(ValueError, match="learning_rate is not in the state: give learning_rate="):
        from_optax(optax.rmsprop(LR).init(tree))
    with pytest.raises(ValueError, match="momentum is not in the state, which has a trace"):
        from_optax(optax.rmsprop(LR, momentum=0.9).init(tree), learning_rate=LR)
    with pytest.raises(ValueError, match="the state has no trace"):
        from_optax(optax.rmsprop(LR).init(tree), learning_rate=LR, momentum=0.9)
    with pytest.raises(ValueError, match="centered=True: the state was made with centered=False"):
        from_optax(optax.rmsprop(LR).init(tree), learning_rate=LR, centered=True)
    with pytest.raises(ValueError, match=r"rho=0.9: optax.rmsprop has no such option; expected one of learning_rate"):
        from_optax(optax.rmsprop(LR).init(tree), learning_rate=LR, rho=0.9)
    notes = from_optax(optax.rmsprop(LR).init(tree), learning_rate=LR).notes
    assert [note.split()[0] for note in notes] == ["decay", "eps", "optax"]
    assert from_optax(optax.rmsprop(LR).init(tree), learning_rate=LR, decay=0.9, epsilon=1e-8, step=3).notes == ()


def test_what_optax_computes_otherwise_is_refused():
    tree = nested(start())
    both = {"centered": True, "bias_correction": True}
    message = "something else with centered and bias_correction together"
    with pytest.raises(ValueError, match=message):
        from_optax(optax.rmsprop(LR, **both).init(tree), learning_rate=LR)
    ours = of(RMSprop({"w": np.ones(2)}, **both))
    with pytest.raises(ValueError, match=message):
        to_optax(ours, optax.rmsprop(LR, **both).init({"w": jnp.ones(2)}))
    with pytest.raises(ValueError, match=r"optax.rmsprop cannot have weight_decay=0.1"):
        to_optax(of(RMSprop({"w": np.ones(2)}, weight_decay=0.1)), optax.rmsprop(LR).init({"w": jnp.ones(2)}))


@pytest.mark.parametrize(
    ("tree", "options", "message"),
    [
        ({"w": jnp.ones(3)}, {}, r"w: square_avg has shape \(2,\): expected \(3,\)"),
        ({"u": jnp.ones(2)}, {}, r"lacks \['u'\] and has \['w'\]"),
        ({"w": jnp.ones(2)}, {"momentum": 0.9}, "state: made with momentum, and the rule has 0.0"),
        ({"w": jnp.ones(2)}, {"centered": True}, "state: made with centered"),
        ({"w": jnp.ones(2)}, {"bias_correction": True}, "state: made with bias_correction"),
        ({"w": jnp.ones(2, complex)}, {}, r"w: square_avg is float32: expected complex64; optax averages \|g\|\^2"),
    ],
)
def test_the_target_must_fit(tree, options, message):
    ours = RMSprop({"w": np.ones(2, np.float32)})
    ours.step({"w": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match=message):
        to_optax(of(ours), optax.rmsprop(LR, **options).init(tree))


def test_partitions_are_refused():
    tree = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = optax.partition({"x": optax.rmsprop(LR), "y": optax.rmsprop(LR)}, {"a": "x", "b": "y"})
    for several in (tx, optax.chain(optax.rmsprop(LR), optax.rmsprop(LR))):
        with pytest.raises(ValueError, match=r"nu at .*: expected one rmsprop; convert each part of a partition alone"):
            from_optax(several.init(tree), learning_rate=LR)
    with pytest.raises(ValueError, match=r"expected the state of optax.rmsprop"):
        from_optax(optax.sgd(LR, momentum=0.9).init(tree), learning_rate=LR)


def test_our_own_jax_state_passes_as_numpys():
    rule = rmsprop.dialect("optax", lr=LR, momentum=0.9)
    tx = rmsprop.jax.rmsprop(LR, dialect=rule)
    params = nested(start())
    at, state = steps(tx, params, tx.init(params), range(HALF))
    checkpoint = named(from_numpy(rmsprop.jax.state_dict(state, rule)))
    after, _ = steps(tx, at, state, range(HALF, 2 * HALF))
    close(go_on(checkpoint, flat(at)), flat(after))
    saved = rmsprop.jax.state_dict(state, rule)
    back = to_numpy(from_numpy(saved), names=saved["state"])
    restored = rmsprop.jax.load_state_dict(tx.init(params), back)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)


def test_names_are_paths():
    ours = RMSprop([np.ones(2), np.ones(3)])
    assert of(ours).names == ("0", "1")
    restore(RMSprop([np.zeros(2), np.zeros(3)]), of(ours))
    assert of(RMSprop({"a": np.ones(2), "b.c": np.ones(3)})).names == ("a", "b.c")
    assert of(RMSprop({("a", 1): np.ones(2)})).names == ("[('a', 1)]",)
    with pytest.raises(ValueError, match="two parameters would have one name"):
        of(RMSprop({"1": np.ones(2), 1: np.ones(3)}))
    with pytest.raises(ValueError, match=r"lacks \['z'\] and has \['0', '1'\]"):
        restore(RMSprop({"z": np.ones(2)}), of(ours))
