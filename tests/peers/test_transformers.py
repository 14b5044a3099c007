"""Hugging Face's Trainer with `optimizers=(ours, schedule)`: resumed bit for bit, and equal to torch's optimizer."""

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from rmsprop.torch import RMSprop
from tests.peers.conftest import numbers

# The gradient of an attention's key bias is rounding error alone: a small eps would make whole steps of it.
OPTIONS = {"eps": 1e-3, "lr": 0.001, "momentum": 0.9, "weight_decay": 0.01, "centered": True}
STEPS = 12


def bert():
    """A model of 5,000 numbers with dropout, so that going on needs the random state too."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    return BertForSequenceClassification(config)


def sentences():
    tokens = torch.randint(32, (48, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "attention_mask": torch.ones(8), "labels": int(row[0] > 15)} for row in tokens]


def trainer(cls, folder, steps=STEPS, **arguments):
    model = bert()
    optimizer = cls(model.parameters(), **OPTIONS)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    settings = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=8,
        save_steps=steps // 2 if steps == STEPS else steps,
        max_grad_norm=0.5,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        seed=0,
        **arguments,
    )
    return Trainer(model, settings, train_dataset=sentences(), optimizers=(optimizer, schedule))


@pytest.mark.parametrize("arguments", [{}, {"bf16": True}], ids=str)
def test_goes_on_bit_for_bit(tmp_path, arguments):
    whole = trainer(RMSprop, tmp_path / "whole", **arguments)
    whole.train()
    half = trainer(RMSprop, tmp_path / "half", steps=STEPS // 2, **arguments)
    half.train()
    resumed = trainer(RMSprop, tmp_path / "resumed", **arguments)
    resumed.train(resume_from_checkpoint=get_last_checkpoint(tmp_path / "half"))
    assert resumed.state.global_step == STEPS
    assert {int(state["step"]) for state in resumed.optimizer.state.values()} == {STEPS}
    assert torch.equal(numbers(resumed.model), numbers(whole.model))
    assert not torch.equal(numbers(half.model), numbers(whole.model))


@pytest.mark.parametrize("arguments", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str)
def test_equals_torchs_optimizer(tmp_path, arguments):
    runs = []
    for cls in (RMSprop, torch.optim.RMSprop):
        runs.append(trainer(cls, tmp_path / cls.__module__, **arguments))  # which seeds what its training draws
        runs[-1].train()
    assert_close(numbers(runs[0].model), numbers(runs[1].model), rtol=1e-5, atol=1e-5)
