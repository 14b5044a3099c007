"""Trains on handwritten digits with FSDP2, saves a sharded checkpoint, and goes on from it bit for bit.

    torchrun --nproc-per-node 2 examples/fsdp2.py [FOLDER]

Any number of processes will do, on CPUs (gloo). With a folder, the checkpoint stays there.
"""

import sys
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rmsprop.torch import RMSprop

EPOCHS, TRAINED = 20, 1400


def made() -> tuple[nn.Module, RMSprop]:
    """The network, shared out over the processes, and its optimizer, with state from the start."""
    torch.manual_seed(0)  # the same first weights on every rank
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    optimizer = RMSprop(model.named_parameters(), lr=1e-3, dialect="keras", momentum=0.5)
    optimizer.init_state()
    return model, optimizer


def train(model: nn.Module, optimizer: RMSprop, epochs: range, x: torch.Tensor, y: torch.Tensor) -> None:
    """Each process takes its share of every batch; FSDP2 averages the gradients."""
    for epoch in epochs:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(100):
            mine = batch.tensor_split(dist.get_world_size())[dist.get_rank()]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
            optimizer.step()


def main(folder: str) -> None:
    """Trains, saves, loads into a new model and optimizer, and trains both on."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    model, optimizer = made()
    train(model, optimizer, range(EPOCHS), x[:TRAINED], y[:TRAINED])
    parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(parts, checkpoint_id=folder)

    again, other = made()
    parts = dict(zip(("model", "optimizer"), get_state_dict(again, other), strict=True))
    dcp.load(parts, checkpoint_id=folder)
    set_state_dict(again, other, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
    for each in ((model, optimizer), (again, other)):
        train(*each, range(EPOCHS, EPOCHS + 2), x[:TRAINED], y[:TRAINED])

    right = (again(x[TRAINED:]).argmax(1) == y[TRAINED:]).float().mean().item()
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    same = all(torch.equal(p.full_tensor(), q.full_tensor()) for p, q in pairs)
    if dist.get_rank() == 0:
        print(f"accuracy on {len(x) - TRAINED} digits not trained on: {right:.1%}")
        print(f"resumed run equal bit for bit: {same}")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    with TemporaryDirectory() as temporary:
        shared = [sys.argv[1] if len(sys.argv) > 1 else temporary]
        dist.broadcast_object_list(shared)
        main(shared[0])
        dist.barrier()
    dist.destroy_process_group()
