"""A small problem that every peer trains on. Nothing here asks the network or reports home."""

import os

import pytest
import torch

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "TQDM_DISABLE": "1",
    "LIGHTNING_DISABLE_VERSION_CHECK": "1",
}
torch.set_num_threads(1)  # for tensors this small a second one only waits
# PyPI's torchvision, which timm and Lightning import, is built for CUDA. Beside a torch for the CPU its operators do
# not load, and it cannot do without these two.
if torch.version.cuda is None:
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Problem(torch.utils.data.Dataset):
    """A sum of sines to learn: 48 rows, 6 batches of 8."""

    def __init__(self):
        self.x = torch.linspace(-3, 3, 48 * 4).reshape(4, 48).T.sin()
        self.y = self.x.sum(1, keepdim=True).sin()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def loader():
    return torch.utils.data.DataLoader(Problem(), batch_size=8)


def numbers(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])
