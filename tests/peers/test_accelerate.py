"""accelerate: prepare, clip, accumulate, save, load, mixed precision; against torch's optimizer in a plain loop."""

import pickle

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.testing import assert_close

from rmsprop.torch import RMSprop
from tests.peers.conftest import loader, network, numbers

OPTIONS = {"lr": 0.003, "momentum": 0.9, "weight_decay": 0.01, "centered": True}


@pytest.fixture(autouse=True)
def fresh_state():
    """accelerate keeps the precision in a global."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Run:
    """A user's script: what is prepared, and an epoch."""

    def __init__(self, cls, precision="no", accumulate=1):
        self.accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate)
        model = network()
        optimizer = cls(model.parameters(), **OPTIONS)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            model, optimizer, loader(), schedule
        )

    def epoch(self):
        for x, y in self.loader:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(torch.nn.functional.mse_loss(self.model(x), y))
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.1)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
        return self

    def steps(self):
        return {int(state["step"]) for state in self.optimizer.state.values()}


def plain_epochs(count):
    """The same script without accelerate, with torch's optimizer."""
    model = network()
    optimizer = torch.optim.RMSprop(model.parameters(), **OPTIONS)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    for _ in range(count):
        for x, y in loader():
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
    return model


def test_equals_torch_without_accelerate():
    run = Run(RMSprop).epoch().epoch()
    assert run.steps() == {12}
    assert not run.optimizer.step_was_skipped
    assert_close(numbers(run.model), numbers(plain_epochs(2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accumulation_and_precision_equal_torchs(precision):
    ours, theirs = (Run(cls, precision, accumulate=2).epoch().epoch() for cls in (RMSprop, torch.optim.RMSprop))
    assert ours.steps() == theirs.steps() == {6}
    assert {state["square_avg"].dtype for state in ours.optimizer.state_dict()["state"].values()} == {torch.float32}
    assert_close(numbers(ours.model), numbers(theirs.model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_goes_on_after_load_state_bit_for_bit(tmp_path, precision):
    whole = Run(RMSprop, precision).epoch().epoch()
    Run(RMSprop, precision).epoch().accelerator.save_state(tmp_path)
    resumed = Run(RMSprop, precision)
    resumed.accelerator.load_state(tmp_path)
    resumed.epoch()
    assert torch.equal(numbers(resumed.model), numbers(whole.model))
    assert resumed.steps() == {12}


def test_pickle_of_the_prepared_optimizer():
    run = Run(RMSprop).epoch()
    other = pickle.loads(pickle.dumps(run.optimizer))
    entries = list(zip(other.state.values(), run.optimizer.state.values(), strict=True))
    assert entries
    assert all(torch.equal(a[key], b[key]) for a, b in entries for key in b)
