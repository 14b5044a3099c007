"""Every front end against what the real implementations did: the recordings of tests/golden, replayed."""

import json
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import rmsprop.torch
from rmsprop import DIALECTS, dialect
from rmsprop.kernels import cpu
from tests.golden import problem

MANIFEST = json.loads((problem.FOLDER / "manifest.json").read_text())
GIVEN = problem.load("problem")
ARRAYS = {library: problem.load(library) for library in MANIFEST}
ALL = {
    f"{library}, {entry['name']}, {entry['dtype']}": (library, {"library": library, **entry})
    for library, part in MANIFEST.items()
    for entry in part["recordings"]
}
REPLAYED = {name: of for name, of in ALL.items() if of[1]["dialect"] and "refused" not in of[1]}
REFUSED = {name: of for name, of in ALL.items() if "refused" in of[1]}
#: Rprop is another rule.
RPROP = {name: of for name, of in ALL.items() if of[1]["dialect"] is None}
#: Dialects whose home cannot be had as a Python package, and why.
NOT_RECORDED = {
    "burn": "is Rust",
    "lasagne": "0.1, the one release, imports theano.tensor.signal.downsample, which Theano 1.0.5 does not have",
    "blocks": "is not on PyPI",
    "neon": "is not on PyPI",
    "modern": "is our own",
}

#: 4 units in the last place of the tensor's largest parameter, or 1e-12 of it.
TOLERANCE = {"float32": 4.0, "float64": 1.0}
#: Rounding of 50 steps, in the state.
STATE_TOLERANCE = {"float32": 5e-6, "float64": 1e-12}
#: In JAX the parameters move by one sum of decay and step, as optax wants it, and XLA contracts multiplications with
#: additions: where a library's exception is about such roundings, it is another one, or none.
IN_JAX = {
    "optax, decoupled decay, float32": TOLERANCE["float32"],
    "stable_baselines3, centered, momentum, decay, float32": 8.0,
    "tensorflow_optimizers, tf_keras momentum, centered, decay, float32": 8.0,
}


def the_rule(entry):
    """The rule of a recording, with the numbers that the library itself rounds to float32 so rounded."""
    rule = dialect(entry["dialect"], **entry["options"])
    return rule.replace(**{name: float(np.float32(getattr(rule, name))) for name in entry.get("rounded", ())})


def options(entry, **names):
    """What lies over the dialect, under a front end's names."""
    rule = the_rule(entry)
    changed = entry["options"].keys() | set(entry.get("rounded", ()))
    return {names.get(name, name): getattr(rule, name) for name in sorted(changed)}


class Numpy:
    def __init__(self, entry, params, **engine):
        self.params = params
        self.optimizer = rmsprop.RMSprop(params, dialect=entry["dialect"], **engine, **options(entry))

    def step(self, lr, grads):
        self.optimizer.lr = lr
        self.optimizer.step(grads)

    def state(self, name):
        return [entry[name] for entry in self.optimizer.state_dict()["state"].values()]


class Torch:
    def __init__(self, entry, params, **engine):
        self.params = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
        given = options(entry, beta="alpha", epsilon="eps")
        if "decay_mode" in given:
            given["decoupled_weight_decay"] = given.pop("decay_mode") == "decoupled"
        given |= {"fused": True} | engine
        self.optimizer = rmsprop.torch.RMSprop(self.params, dialect=entry["dialect"], **given)

    def step(self, lr, grads):
        self.optimizer.param_groups[0]["lr"] = lr
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g if g is None or torch.is_tensor(g) else torch.from_numpy(g)
        self.optimizer.step()

    def state(self, name):
        return [self.optimizer.state[p][name].numpy() for p in self.params if p in self.optimizer.state]


class Foreach(Torch):
    def __init__(self, entry, params, **engine):
        super().__init__(entry, params, fused=None, foreach=True, **engine)


class Jax:
    """Plays back what `together` has run."""

    def __init__(self, entry, params):
        runs = together(entry["library"], entry["dtype"], entry["problem"].startswith("table"))
        track, self.final = runs[entry["name"]]
        self.steps = iter(track)

    def step(self, lr, grads):
        self.params = next(self.steps)

    def state(self, name):
        fields = {"square_avg": "nu", "variance": "variance", "grad_avg": "mu", "momentum_buffer": "trace"}
        return getattr(self.final, fields[name])


@cache
def together(library, dtype, table):
    """The parameters after every step, and the last state, of all recordings of one kind: in JAX, compiled as one.

    Compiling them one by one would take most of a minute. Those of tables are not compiled, for which rows have a
    gradient is part of a program.
    """
    import jax

    import rmsprop.jax

    of = [e for _, e in REPLAYED.values() if (e["library"], e["dtype"]) == (library, dtype)]
    of = [e for e in of if e["problem"].startswith("table") == table]
    with jax.enable_x64(dtype == "float64"):
        lr = jax.numpy.asarray(GIVEN["lr"].astype(dtype))
        makers = []
        for entry in of:
            given = options(entry, beta="decay", epsilon="eps", initial_square="initial_scale")
            makers.append(rmsprop.jax.rmsprop(lambda count: lr[count], dialect=entry["dialect"], **given))

        def step(params, states, grads):
            moved = [maker.update(*x) for maker, *x in zip(makers, grads, states, params, strict=True)]
            new = [
                [p if move is None else p + move for p, move in zip(ps, moves, strict=True)]
                for ps, (moves, _) in zip(params, moved, strict=True)
            ]
            return new, [state for _, state in moved]

        step = step if table else jax.jit(step)
        start = [p.astype(dtype) for p in (GIVEN["table"] if table else [GIVEN["start"]])]
        params = [[jax.numpy.asarray(p) for p in start] for _ in of]
        states = [maker.init(ps) for maker, ps in zip(makers, params, strict=True)]
        track = []
        for t in range(problem.STEPS):
            grads = [gradients(e["problem"], t, dtype) for e in of]
            params, states = step(params, states, grads if table else [[problem.flat(g)] for g in grads])
            track.append(params)
    return {e["name"]: ([ps[i] for ps in track], states[i]) for i, e in enumerate(of)}


NEEDS_KERNEL = pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")
NEEDS_JAX = pytest.mark.skipif(find_spec("jax") is None, reason="no JAX")


@pytest.fixture(params=[Numpy, pytest.param(Torch, marks=NEEDS_KERNEL), Foreach, pytest.param(Jax, marks=NEEDS_JAX)])
def front_end(request):
    return request.param


def gradients(kind, t, dtype):
    """Of step t, a list. A table is a parameter a row, so that a row without a gradient can wait, as in TensorFlow."""
    if not kind.startswith("table"):
        return problem.tensors(GIVEN[kind][t].astype(dtype))
    grads = [None if kind == "table" else np.zeros(3, dtype) for _ in GIVEN["table"]]
    for row, g in zip(GIVEN["rows"][t], GIVEN["row_gradients"][t].astype(dtype), strict=True):
        grads[row] = g
    return grads


def replay(library, entry, front_end):
    """The optimizer after the last step, and by how many units of TOLERANCE the parameters were off at worst."""
    dtype, table = entry["dtype"], entry["problem"].startswith("table")
    start = GIVEN["table"] if table else problem.tensors(GIVEN["start"])
    optimizer = front_end(entry, [p.astype(dtype) for p in start])
    recorded = dict(zip(problem.RECORDED, ARRAYS[library][f"{entry['name']}/{dtype}/p"], strict=True))
    worst = 0.0
    for t, lr in enumerate(GIVEN["lr"].tolist()):
        optimizer.step(lr, gradients(entry["problem"], t, dtype))
        if t + 1 in recorded:
            worst = max(worst, off(problem.flat(detached(optimizer.params)), recorded[t + 1], table))
    return optimizer, worst


def detached(params):
    return [p.detach() if torch.is_tensor(p) else p for p in params]


def off(ours, theirs, table):
    """The largest difference, tensor by tensor; a table is one tensor."""
    assert np.isfinite(ours).all()
    assert ours.dtype == theirs.dtype
    if not np.isfinite(theirs).all():
        return float("inf")
    differences = []
    for a, b in zip(*([ours], [theirs]) if table else (problem.tensors(ours), problem.tensors(theirs)), strict=True):
        largest = np.abs(b).max()
        unit = np.spacing(largest) if b.dtype == np.float32 else 1e-12 * largest
        differences.append(float(np.abs(a - b).max() / unit))
    return max(differences)


@pytest.mark.parametrize("recording", REPLAYED)
def test_replays(recording, front_end):
    library, entry = REPLAYED[recording]
    optimizer, worst = replay(library, entry, front_end)
    if front_end is Jax and recording in IN_JAX:
        assert worst <= IN_JAX[recording]
    elif "exception" not in entry:
        assert worst <= TOLERANCE[entry["dtype"]]
    else:
        size = float(entry["exception"]["size"])
        assert size > TOLERANCE[entry["dtype"]], "no exception is needed"
        assert size / 2 <= worst <= 2 * size, f"not the exception that was named: {entry['exception']['reason']}"
    check_state(library, entry, optimizer)


def check_state(library, entry, optimizer):
    """Ours against the library's where it lets itself be read, each on its scale."""
    names, tolerance = the_rule(entry).slots(), STATE_TOLERANCE[entry["dtype"]]
    arrays = ARRAYS[library]
    read = {letter: f"{entry['name']}/{entry['dtype']}/{letter}" for letter in names}
    ours = {letter: problem.flat(optimizer.state(names[letter])) for letter in names}
    theirs = {letter: arrays[key][: ours[letter].size] for letter, key in read.items() if key in arrays}
    assert "v" in theirs
    np.testing.assert_allclose(ours["v"] + ours.get("m", 0.0) ** 2, theirs["v"], rtol=tolerance)
    if "m" in theirs:
        assert (np.abs(ours["m"] - theirs["m"]) <= tolerance * np.sqrt(theirs["v"])).all()
    if "b" in theirs and "exception" not in entry:
        np.testing.assert_allclose(ours["b"], theirs["b"], rtol=0, atol=tolerance * np.abs(theirs["b"]).max())


@pytest.mark.parametrize("make", [Numpy, pytest.param(Torch, marks=NEEDS_KERNEL), Foreach])
@pytest.mark.parametrize("recording", [name for name, (_, e) in REPLAYED.items() if e["problem"].startswith("table")])
def test_gradients_of_rows(recording, make):
    """As the library was given them: where it lets other rows wait with sparse="lazy", else with the exact default."""
    library, entry = REPLAYED[recording]
    lazy = {"sparse": "lazy"} if entry["problem"] == "table" else {}
    optimizer = make(entry, [GIVEN["table"].astype(entry["dtype"])], **lazy)
    for t, lr in enumerate(GIVEN["lr"].tolist()):
        g = (GIVEN["rows"][t], GIVEN["row_gradients"][t].astype(entry["dtype"]))
        if make is not Numpy:
            g = torch.sparse_coo_tensor(g[0][None], torch.from_numpy(g[1]), (6, 3), check_invariants=True)
        optimizer.step(lr, [g])
    optimizer.optimizer.flush()
    last = ARRAYS[library][f"{entry['name']}/{entry['dtype']}/p"][-1]
    assert off(problem.flat(detached(optimizer.params)), last, True) <= TOLERANCE[entry["dtype"]]
    check_state(library, entry, optimizer)


@pytest.mark.parametrize("recording", REFUSED)
def test_flags_that_the_rule_does_not_have_are_refused_by_name(recording):
    library, entry = REFUSED[recording]
    flag, name = {entry["refused"]: entry["call"][entry["refused"]]}, entry["dialect"]
    _, worst = replay(library, entry, Numpy)
    assert worst > 1000 * TOLERANCE[entry["dtype"]], "the flag changes nothing: nothing would be lost by taking it"
    p = np.ones(3)
    with pytest.raises(TypeError, match=entry["refused"]):
        dialect(name, **flag)
    with pytest.raises(TypeError, match=entry["refused"]):
        rmsprop.RMSprop([p], dialect=name, **flag)
    with pytest.raises(TypeError, match=entry["refused"]):
        rmsprop.torch.RMSprop([torch.ones(3)], dialect=name, **flag)
    if find_spec("jax") is not None:
        from rmsprop.jax import rmsprop as transformation

        with pytest.raises(TypeError, match=entry["refused"]):
            transformation(0.1, dialect=name, **flag)


def test_every_dialect_is_recorded_or_known_not_to_be():
    recorded = {entry["dialect"] for _, entry in REPLAYED.values()}
    assert recorded | set(NOT_RECORDED) == set(DIALECTS)
    assert not recorded & set(NOT_RECORDED)


@pytest.mark.parametrize("library", MANIFEST)
def test_the_manifest_names_what_the_file_holds(library):
    names = {f"{entry['name']}/{entry['dtype']}" for entry in MANIFEST[library]["recordings"]}
    assert len(names) == len(MANIFEST[library]["recordings"])
    assert names == {key.rpartition("/")[0] for key in ARRAYS[library]}
    assert MANIFEST[library]["versions"]


def rprop_options(library, entry):
    call = entry["call"]
    if library == "torch":  # the schedule's first learning rate is the first step size
        return {"lr": float(GIVEN["lr"][0])} | {k: tuple(v) if isinstance(v, list) else v for k, v in call.items()}
    etas = (call.get("eta_minus", 0.5), call.get("eta_plus", 1.2))
    return {"lr": 0.01, "dialect": "optax", "etas": etas, "step_sizes": (call.get("min_step_size", 1e-6), 50.0)}


@pytest.mark.parametrize("engine", ["numpy", pytest.param("fused", marks=NEEDS_KERNEL), "foreach"])
@pytest.mark.parametrize("recording", RPROP)
def test_rprop_replays(recording, engine):
    library, entry = RPROP[recording]
    key = f"{entry['name']}/{entry['dtype']}"
    params = [p.astype(entry["dtype"]) for p in problem.tensors(GIVEN["start"])]
    if engine == "numpy":
        optimizer = rmsprop.Rprop(params, **rprop_options(library, entry))
    else:
        params = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
        optimizer = rmsprop.torch.Rprop(params, **{engine: True}, **rprop_options(library, entry))
    recorded = dict(zip(problem.RECORDED, ARRAYS[library][f"{key}/p"], strict=True))
    for t in range(problem.STEPS):
        grads = gradients(entry["problem"], t, entry["dtype"])
        if engine == "numpy":
            optimizer.step(grads)
        else:
            for p, g in zip(params, grads, strict=True):
                p.grad = torch.from_numpy(g)
            optimizer.step()
        if t + 1 in recorded:
            assert off(problem.flat(detached(params)), recorded[t + 1], False) <= TOLERANCE[entry["dtype"]]
    states = optimizer.state_dict()["state"].values()
    sizes = problem.flat([np.asarray(state["step_size"]) for state in states])
    np.testing.assert_allclose(sizes, ARRAYS[library][f"{key}/step_size"], rtol=STATE_TOLERANCE[entry["dtype"]])


# Keras' own tests (keras/src/optimizers/rmsprop_test.py) say these.


@pytest.mark.parametrize("make", [Numpy, pytest.param(Torch, marks=NEEDS_KERNEL)])
def test_golden_vectors_of_keras(make):
    entry = {"dialect": "keras", "options": {}}
    optimizer = make(entry, [np.array([1.0, 2.0, 3.0, 4.0])])
    optimizer.step(0.5, [np.array([1.0, 6.0, 7.0, 2.0])])
    expected = [-0.5811, 0.4189, 1.4189, 2.4189]
    np.testing.assert_allclose(problem.flat(detached(optimizer.params)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [Numpy, pytest.param(Torch, marks=NEEDS_KERNEL)])
def test_golden_vectors_of_keras_centered(make):
    optimizer = make({"dialect": "keras", "options": {"centered": True}}, [np.ones(10)])
    optimizer.step(0.001, [np.full(10, 0.01)])
    for expected in (0.9967, 0.9933, 0.9908, 0.9885, 0.9864):
        ours = problem.flat(detached(optimizer.params))
        np.testing.assert_allclose(ours, np.full(10, expected), rtol=5e-4, atol=5e-4)
        optimizer.step(0.001, [np.arange(0.1, 1.1, 0.1)])
