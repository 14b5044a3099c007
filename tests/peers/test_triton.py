"""The kernel for GPUs in Triton's interpreter, on the CPU: its bits are those of the native kernel.

What a GPU does with it is tests/test_torch_gpu.py.
"""

import pytest
import torch

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is not set to 1", allow_module_level=True)

from rmsprop import Rule  # noqa: E402
from rmsprop.kernels import cpu, launch  # noqa: E402
from rmsprop.rprop import RpropRule  # noqa: E402
from rmsprop.torch import RMSprop, Rprop, captured, gpu  # noqa: E402

pytestmark = [
    pytest.mark.skipif(cpu.native is None, reason="no native kernel"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # the interpreter computes with NumPy
]
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
FORMATS = [(FLOAT32, FLOAT32), (FLOAT64, FLOAT64), (FLOAT16, FLOAT32), (BFLOAT16, FLOAT32), (BFLOAT16, BFLOAT16)]
RULES = {
    "plain": Rule(),
    "floor": Rule(epsilon_mode="floor", epsilon=0.5, initial_square=1.0, clip_weights=1.0, maximize=True),
    "all": Rule(centered=True, bias_correction=True, momentum=0.9, nesterov=True, weight_decay=0.1, clip=0.5),
    "skip": Rule(nonfinite="skip", momentum=0.5, momentum_form="ema", weight_decay=0.1, decay_mode="decoupled"),
    "irprop-": RpropRule(),
    "rprop+": RpropRule(variant="rprop+"),
    "optax": RpropRule(dialect="optax"),
}
SHAPES = [(5, 4), (), (1100,), (0, 3)]


def group(rule, dtype, state, **options):
    """A group, the same each time; the random numbers of its last tensor pass the end of 32 bits."""
    generator = torch.Generator().manual_seed(0)
    params, grads = ([torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES] for _ in range(2))
    slots = [*rule.slots().values(), *["weight_avg"] * ("gamma" in options)]
    states = [{name: torch.rand(p.shape, generator=generator).to(state) for name in slots} for p in params]
    states = [{"step": torch.zeros(()), **entry} for entry in states]
    if isinstance(rule, Rule):
        grads[0][0, 0] = float("inf")
    return cpu.Group(*cpu.coefficients(rule, **options), params, grads, states, None, 7, [0, 20, 2**32 - 500, 2**33])


def assert_same(group, other):
    for i, (p, q) in enumerate(zip(group.params, other.params, strict=True)):
        torch.testing.assert_close(p, q, rtol=0, atol=0, equal_nan=True)
        for name, value in group.states[i].items():
            torch.testing.assert_close(value, other.states[i][name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize(("dtype", "state"), FORMATS, ids=str)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("options", [{}, {"gamma": 8.0}, {"stochastic": True}], ids=["", "averaging", "stochastic"])
def test_its_bits_are_those_of_the_native_kernel(rule, dtype, state, options):
    if (isinstance(rule, RpropRule) and "gamma" in options) or (dtype == FLOAT16 and "stochastic" in options):
        pytest.skip("cannot be combined")
    here, there, launcher = (
        group(rule, dtype, state, **options),
        group(rule, dtype, state, **options),
        launch.Launcher(),
    )
    for _ in range(3):
        assert cpu.native.launch([there], launcher) == cpu.native.step([here], 1)
    assert_same(here, there)


@pytest.mark.parametrize("found", [None, 0.0, 1.0])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_numbers_on_the_device(dtype, found):
    rule = Rule(bias_correction=True, momentum=0.9, momentum_form="ema")
    here, there = (group(rule, dtype, dtype, gamma=8.0, stochastic=dtype == BFLOAT16) for _ in range(2))
    for g in there.grads:
        g.mul_(8)
    found_inf = None if found is None else torch.tensor([found])
    launcher, lr = launch.Launcher(), torch.tensor(0.001, dtype=torch.float64)
    for _ in range(3):
        captured.step([captured.Part(rule, 8.0, lr, there)], torch.tensor(8.0), found_inf, launcher)
        if not found:
            cpu.native.step([here], 1)
    assert_same(here, there)


def test_kinds_of_one_step():
    """Of several dtypes and rules, some in the same table: each goes to a launch of its own kind."""
    rules = [(Rule(lr=0.1), FLOAT32), (Rule(lr=0.2), FLOAT32), (Rule(momentum=0.5), FLOAT32), (Rule(), BFLOAT16)]
    here, there = ([group(rule, dtype, FLOAT32) for rule, dtype in rules] for _ in range(2))
    launcher = launch.Launcher()
    for _ in range(2):
        cpu.native.step(here, 1)
        cpu.native.launch(there, launcher)
    for own, other in zip(here, there, strict=True):
        assert_same(own, other)
    assert len(launcher._parts) == 3


def test_what_is_refused_moves_nothing():
    whole, other = group(Rule(), FLOAT32, FLOAT32), group(Rule(), FLOAT32, FLOAT32)
    for change, message in (
        (lambda g: g.t(), "shape"),
        (lambda g: torch.randn(4, 5).t(), "not for a kernel"),
        (lambda g: g.double(), "dtype"),
    ):
        grads = [whole.grads[1], change(whole.grads[0]), *whole.grads[2:]]
        order = [1, 0, 2, 3]
        work = whole._replace(
            params=[whole.params[i] for i in order], states=[whole.states[i] for i in order], grads=grads
        )
        with pytest.raises((TypeError, ValueError), match=message):
            cpu.native.launch([work], launch.Launcher())
    assert_same(whole, other)


def test_an_error_while_launching_counts_no_step():
    work = group(Rule(), FLOAT32, FLOAT32)

    def fails(rows, scalars):
        raise MemoryError

    with pytest.raises(MemoryError):
        cpu.native.launch([work], fails)
    assert_same(work, group(Rule(), FLOAT32, FLOAT32))


def test_what_may_fail_comes_before_the_first_launch(monkeypatch):
    groups, launcher, prepared = [group(Rule(), dtype, FLOAT32) for dtype in (FLOAT32, BFLOAT16)], launch.Launcher(), []

    def prepare(part, scalars):
        prepared.append(part)
        if len(prepared) == 2:
            raise RuntimeError("out of resources")

    monkeypatch.setattr(launch._Part, "prepare", prepare)
    with pytest.raises(RuntimeError, match="out of resources"):
        cpu.native.launch(groups, launcher)
    for own, dtype in zip(groups, (FLOAT32, BFLOAT16), strict=True):
        assert_same(own, group(Rule(), dtype, FLOAT32))


def test_a_triton_that_cannot_run_is_as_none(monkeypatch):
    def fails():
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch, "try_out", fails)
    with pytest.warns(UserWarning, match="through lists of tensors.*no C compiler"):
        assert gpu.kernel.__wrapped__() is None


def test_what_lies_alike():
    p = torch.zeros(2, 3, 4, 5)
    last = p.contiguous(memory_format=torch.channels_last)
    assert gpu.lie_alike(p, [p.clone()], True)
    assert gpu.lie_alike(last, [last.clone()], False)
    assert not gpu.lie_alike(last, [last.clone()], True)  # random numbers belong to the place in row-major order
    assert not gpu.lie_alike(last, [last.clone(), p], False)
    assert not gpu.lie_alike(p[:, ::2], [p[:, ::2]], False)


def test_no_parameters_are_no_launch():
    assert cpu.native.launch([], None) == 0


def test_the_table_is_made_anew_only_when_it_changes(monkeypatch):
    work, launcher, made = group(Rule(), FLOAT32, FLOAT32), launch.Launcher(), []
    uploaded = launch.Launcher._uploaded
    monkeypatch.setattr(launch.Launcher, "_uploaded", lambda self, *args: made.append(1) or uploaded(self, *args))
    counts, faster = [], cpu.coefficients(Rule(lr=0.1))[0]
    moved = work._replace(scalars=faster, grads=[g.clone() for g in work.grads])
    for each in (work, work, work._replace(scalars=faster), moved):
        cpu.native.launch([each], launcher)
        counts.append(len(made))
        made.clear()
    assert counts == [3, 0, 1, 2]  # rows, blocks and scalars; none; scalars; rows and scalars


@pytest.mark.parametrize("make", [RMSprop, lambda params: RMSprop(params, averaging=True, centered=True), Rprop])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_the_optimizers_take_it(monkeypatch, make, dtype):
    """A step goes there where `gpu.takes` says yes, and elsewhere if a gradient lies otherwise in memory."""
    calls, models = [], []
    call = launch.Launcher.__call__
    monkeypatch.setattr(launch.Launcher, "__call__", lambda *args: calls.append(1) or call(*args))
    for there in (False, True):
        monkeypatch.setattr(gpu, "takes", lambda p, there=there: there)
        generator = torch.Generator().manual_seed(0)
        params = [
            torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((3, 4), (), (4, 3))
        ]
        optimizer = make(params)
        for t in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t)).to(dtype)
            if t == 1:
                params[2].grad = params[2].grad.t().contiguous().t()
            optimizer.step()
        models.append((params, optimizer))
    assert len(calls) == 2
    (params, optimizer), (others, other) = models
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        assert optimizer.state[p].keys() == other.state[q].keys()
        assert all(torch.equal(value, other.state[q][name]) for name, value in optimizer.state[p].items())
