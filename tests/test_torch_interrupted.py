"""`rmsprop.torch.RMSprop` interrupted: by Ctrl-C, by signals whose handlers save or raise, by a lack of memory."""

import copy
import os
import signal
import threading
from contextlib import contextmanager

import pytest
import torch
from numpy.testing import assert_array_equal

from rmsprop.kernels import cpu, lists, rounding
from rmsprop.torch import RMSprop
from tests.conftest import parameter

native_only = pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no signals of one's own")


@contextmanager
def handling(number, handler):
    usual = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, usual)


@contextmanager
def in_time():
    """Turns waiting for ever into an error."""

    def late(*_):
        raise TimeoutError

    with handling(signal.SIGALRM, late):
        signal.alarm(30)
        try:
            yield
        finally:
            signal.alarm(0)


def interrupt(monkeypatch, after, function="step"):
    """Makes the next native call end with what `after` does or raises."""
    usual = getattr(cpu, function)

    def interrupted(*args):
        monkeypatch.setattr(cpu, function, usual)
        result = usual(*args)
        after()
        return result

    monkeypatch.setattr(cpu, function, interrupted)


def raising(error):
    def raise_it(*_):
        raise error

    return raise_it


def embedding(**options):
    torch.manual_seed(0)
    layer = torch.nn.Embedding(6, 3, sparse=True)
    return layer, RMSprop(layer.parameters(), **options)


def sparse_step(layer, optimizer, row):
    optimizer.zero_grad()
    layer(torch.tensor([row])).square().sum().backward()
    optimizer.step()


@native_only
def test_a_handler_saves_within_a_step(monkeypatch):
    p, q, saved = parameter(), parameter(), []
    optimizer, whole = (RMSprop([x], momentum=0.9, centered=True) for x in (p, q))
    for each in (optimizer, whole, whole):
        each.step()
    interrupt(monkeypatch, lambda: signal.raise_signal(signal.SIGUSR1))
    with handling(signal.SIGUSR1, lambda *_: saved.append(copy.deepcopy(optimizer.state_dict()))), in_time():
        optimizer.step()
    torch.testing.assert_close(saved[0]["state"], whole.state_dict()["state"], rtol=0, atol=0)
    assert torch.equal(p, q)


@native_only
@pytest.mark.parametrize("what", ["step", "flush", "state_dict", "catch_up", "averaged"])
def test_a_handler_cannot_step_within_a_step(monkeypatch, what):
    """It would wait for itself; and its error must not be taken for the kernel's, or the step is made twice."""
    (layer, optimizer), (layer2, whole) = (embedding(averaging=False) for _ in "ow")
    for row in (1, 2):
        sparse_step(layer2, whole, row)
    sparse_step(layer, optimizer, 1)

    def nested(*_):
        if what == "averaged":
            optimizer.param_groups[0]["averaging"] = True
            with optimizer.averaged():
                pass
        else:
            getattr(optimizer, what)(*([layer.weight] if what == "catch_up" else []))

    interrupt(monkeypatch, lambda: signal.raise_signal(signal.SIGUSR1))
    with (
        handling(signal.SIGUSR1, nested),
        in_time(),
        pytest.raises(RuntimeError, match="within a step of this optimizer"),
    ):
        sparse_step(layer, optimizer, 2)
    optimizer.param_groups[0]["averaging"] = False
    torch.testing.assert_close(optimizer.state_dict()["state"], whole.state_dict()["state"], rtol=0, atol=0)
    assert torch.equal(layer.weight, layer2.weight)


ERRORS = [SystemExit(143), KeyboardInterrupt(), MemoryError(), RuntimeError("handler"), TypeError("handler")]


@native_only
@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_what_a_handler_raises_leaves_a_whole_step(monkeypatch, error, watched):
    p, q = parameter(), parameter()
    optimizer, whole = (RMSprop([x], momentum=0.9, centered=True) for x in (p, q))
    if watched:
        optimizer.watch()
    whole.step()
    version = p._version
    interrupt(monkeypatch, raising(error), "watched_step" if watched else "step")
    with pytest.raises(type(error)):
        optimizer.step()
    assert p._version > version
    torch.testing.assert_close(optimizer.state_dict()["state"], whole.state_dict()["state"], rtol=0, atol=0)
    assert torch.equal(p, q)
    for each in (optimizer, whole):
        each.step()
    assert torch.equal(p, q)


@native_only
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}], ids=["still", "moves"])
@pytest.mark.parametrize("late", [True, False])
def test_sparse_steps_interrupted(monkeypatch, late, options):
    """As the native call returns, the step has been made; before it begins, it has not."""
    (layer, optimizer), (layer2, whole) = (embedding(**options) for _ in "ow")
    for each, its in ((layer, optimizer), (layer2, whole)):
        if options:
            its.attach(each)
    sparse_step(layer, optimizer, 1)
    if late:
        interrupt(monkeypatch, raising(SystemExit()))
    else:
        monkeypatch.setattr(cpu, "step", raising(KeyboardInterrupt))
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        sparse_step(layer, optimizer, 1)
    monkeypatch.undo()
    for row in (1, 1) if late else (1,):
        sparse_step(layer2, whole, row)
    for each in ((layer, optimizer), (layer2, whole)):
        sparse_step(*each, 2)
    torch.testing.assert_close(optimizer.state_dict()["state"], whole.state_dict()["state"], rtol=0, atol=0)
    assert torch.equal(layer.weight, layer2.weight)


def test_memory_is_short_for_lists_after_the_native_part(make, monkeypatch):
    """Each part of a step is made or not made as a whole, and the state says which."""
    a, b = parameter(), parameter()
    optimizer = make([{"params": [a], "foreach": None}, {"params": [b], "state_dtype": torch.float64}], momentum=0.9)
    if cpu.native is None:
        pytest.skip("no native part")
    square = (a * a).sum()
    with monkeypatch.context() as patch:
        patch.setattr(lists, "step", raising(MemoryError))
        with pytest.raises(MemoryError):
            optimizer.step()
    assert list(optimizer.state) == [a]
    assert optimizer.state[a]["step"] == 1
    assert b.tolist() == [1, -2, 3]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in (a, b)] == [2, 1]


@pytest.mark.parametrize("at", range(4))
def test_memory_is_short_within_lists(monkeypatch, at):
    """At each of the four tensors of state that are rounded at random, one after the other."""
    params, others = ([parameter(), parameter()] for _ in "po")
    options = {"momentum": 0.9, "foreach": True, "state_dtype": torch.bfloat16}
    optimizer, whole = (RMSprop(each, **options) for each in (params, others))
    for each in (optimizer, whole):
        each.step()
    usual, calls = rounding.dithered, []

    def dithered(*args):
        calls.append(args)
        if len(calls) == at + 1:
            raise MemoryError
        return usual(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rounding, "dithered", dithered)
        with pytest.raises(MemoryError):
            optimizer.step()
    torch.testing.assert_close(optimizer.state_dict()["state"], whole.state_dict()["state"], rtol=0, atol=0)
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize("at", range(5))
def test_ctrl_c_within_lists_waits_for_a_whole_step(monkeypatch, at):
    """Two lists of two tensors, of parameters, mean squares and buffers each: five moments between these."""
    kinds = [torch.float32, torch.float32, torch.float64, torch.float64]
    params, others = ([parameter(dtype=kind) for kind in kinds] for _ in "po")
    optimizer, whole = (RMSprop(each, momentum=0.9, foreach=True) for each in (params, others))
    whole.step()
    usual, calls = torch._foreach_copy_, []

    def copy(*args):
        usual(*args)
        calls.append(args)
        if len(calls) == at + 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(torch, "_foreach_copy_", copy)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert len(calls) == 6
    torch.testing.assert_close(optimizer.state_dict()["state"], whole.state_dict()["state"], rtol=0, atol=0)
    for p, q in zip(params, others, strict=True):
        assert_array_equal(p.detach(), q.detach())


@native_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, if another test has imported it
def test_fork_while_another_thread_steps(monkeypatch):
    p = parameter()
    optimizer, usual = RMSprop([p]), cpu.step
    optimizer.step()
    inside, go = threading.Event(), threading.Event()

    def slow(*args):
        inside.set()
        go.wait()
        return usual(*args)

    monkeypatch.setattr(cpu, "step", slow)
    thread = threading.Thread(target=optimizer.step)
    thread.start()
    inside.wait()
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        cpu.step = usual
        try:
            optimizer.step()
            os._exit(int(optimizer.state[p]["step"] != 2))
        finally:
            os._exit(1)
    monkeypatch.undo()
    go.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert optimizer.state[p]["step"] == 2
