"""Lightning: Trainer and Fabric, stopped, resumed bit for bit, in three precisions, and equal to torch's optimizer."""

import lightning
import pytest
import torch
from torch.testing import assert_close

from rmsprop.torch import RMSprop
from tests.peers.conftest import loader, network, numbers

PRECISIONS = ["32-true", "bf16-mixed", "bf16-true"]
OPTIONS = {"lr": 0.003, "momentum": 0.9, "weight_decay": 0.01, "centered": True}

# Lightning's advice about workers and logging, and a class of torch that it asks for by its old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]


class Module(lightning.LightningModule):
    def __init__(self, cls):
        super().__init__()
        self.cls, self.network = cls, network()

    def training_step(self, batch):
        x, y = batch
        return torch.nn.functional.mse_loss(self.network(x).to(y.dtype), y)

    def configure_optimizers(self):
        optimizer = self.cls(self.parameters(), **OPTIONS)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]


def fit(cls, precision, epochs, path=None):
    module = Module(cls)
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=epochs,
        gradient_clip_val=0.1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(), ckpt_path=path)
    return trainer, module


@pytest.mark.parametrize("precision", PRECISIONS)
def test_trainer_goes_on_bit_for_bit(tmp_path, precision):
    _, whole = fit(RMSprop, precision, 4)
    trainer, half = fit(RMSprop, precision, 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer, resumed = fit(RMSprop, precision, 4, tmp_path / "half.ckpt")
    assert torch.equal(numbers(resumed), numbers(whole))
    assert not torch.equal(numbers(half), numbers(whole))
    states = trainer.optimizers[0].state.values()
    assert {int(state["step"]) for state in states} == {24}
    assert {state["momentum_buffer"].dtype for state in states} == {torch.float32}


@pytest.mark.parametrize("precision", PRECISIONS[:2])
def test_trainer_equals_torchs_optimizer(precision):
    (_, ours), (_, theirs) = (fit(cls, precision, 3) for cls in (RMSprop, torch.optim.RMSprop))
    assert_close(numbers(ours), numbers(theirs), rtol=1e-5, atol=1e-6)


class Script:
    """A Fabric user's script."""

    def __init__(self, cls, precision):
        self.fabric = lightning.Fabric(accelerator="cpu", precision=precision)
        model = network()
        self.model, self.optimizer = self.fabric.setup(model, cls(model.parameters(), **OPTIONS))
        self.loader = self.fabric.setup_dataloaders(loader())

    def epoch(self):
        for x, y in self.loader:
            self.optimizer.zero_grad()
            self.fabric.backward(torch.nn.functional.mse_loss(self.model(x), y))
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=0.1)
            self.optimizer.step()
        return self

    @property
    def parts(self):
        return {"model": self.model, "optimizer": self.optimizer}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fabric_goes_on_bit_for_bit(tmp_path, precision):
    whole, half, resumed = (Script(RMSprop, precision) for _ in range(3))
    whole.epoch().epoch()
    half.epoch().fabric.save(tmp_path / "half.ckpt", half.parts)
    resumed.fabric.load(tmp_path / "half.ckpt", resumed.parts)
    assert torch.equal(numbers(resumed.epoch().model), numbers(whole.model))


@pytest.mark.parametrize("precision", PRECISIONS[:2])
def test_fabric_equals_torchs_optimizer(precision):
    ours, theirs = (Script(cls, precision).epoch().epoch() for cls in (RMSprop, torch.optim.RMSprop))
    assert_close(numbers(ours.model), numbers(theirs.model), rtol=1e-5, atol=1e-6)
