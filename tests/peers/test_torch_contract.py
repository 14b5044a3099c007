"""PyTorch's own tests of its optimizers, `TestOptimRenewed`, run on `rmsprop.torch.RMSprop` and `Rprop`.

They are neither in torch's wheel nor ours to copy: PYTORCH_TEST_OPTIM names `test/test_optim.py` in a checkout of
PyTorch. intel/torch-xpu-ops runs them out of tree in the same way.
"""

import importlib
import os
import sys
import unittest
from pathlib import Path

import pytest
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.testing._internal import common_optimizers as common

from rmsprop.torch import RMSprop, Rprop

if not (FILE := os.environ.get("PYTORCH_TEST_OPTIM")):
    pytest.skip("PYTORCH_TEST_OPTIM names no test/test_optim.py of a PyTorch checkout", allow_module_level=True)

pytestmark = [
    # The tests hand ReduceLROnPlateau a loss that has not been detached.
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning"),
    # They read tables without an embedding that could be attached.
    pytest.mark.filterwarnings(r"ignore:.*attach\(\) its embedding:UserWarning"),
]

PATCHES = common.DecorateInfo(
    unittest.skip("patches a function inside torch.optim"), "TestOptimRenewed", "test_defaults_changed_to_foreach"
)
RPROP = common.OptimizerInfo(
    Rprop,
    optim_inputs_func=common.optim_inputs_func_rprop,
    optim_error_inputs_func=common.optim_error_inputs_func_rprop,
    supported_impls=("foreach", "fused", "differentiable"),
    not_og_supported_flags=("foreach", "fused", "differentiable", "maximize", "capturable"),
    supports_fused_on=("cpu",),
    has_capturable_arg=True,
    supports_complex=True,
    skips=[PATCHES],
)
RMSPROP = common.OptimizerInfo(
    RMSprop,
    optim_inputs_func=common.optim_inputs_func_rmsprop,
    optim_error_inputs_func=common.optim_error_inputs_func_rmsprop,
    supported_impls=("foreach", "fused", "differentiable"),
    not_og_supported_flags=("foreach", "fused", "differentiable", "maximize", "capturable"),
    supports_fused_on=("cpu",),
    has_capturable_arg=True,
    supports_complex=True,
    supports_sparse=True,
    # Of the options only coupled weight decay is left out for sparse gradients, as for torch's own optimizers.
    metadata_for_sparse=(
        {"weight_decay": 0},
        [lambda o: StepLR(o, gamma=1 - 1e-5, step_size=500), lambda o: ReduceLROnPlateau(o, threshold=1e-4)],
    ),
    skips=[PATCHES],
)


def load(name):
    """A module of the checkout, made while ours are the only optimizers that torch's tests know."""
    folder, known = str(Path(FILE).absolute().parent), common.optim_db[:]
    sys.path.insert(0, folder)
    common.optim_db[:] = [RMSPROP, RPROP]
    try:
        return importlib.import_module(name)
    finally:
        common.optim_db[:] = known
        sys.path.remove(folder)


TESTS = load(Path(FILE).stem)
# One class for each device that torch has here.
globals().update({name: case for name, case in vars(TESTS).items() if name.startswith("TestOptimRenewed")})


@pytest.fixture(autouse=True)
def foreach_on_the_cpu(request, monkeypatch):
    """torch's tests leave foreach out on the CPU, where torch has no such kernels; ours runs there too.

    Not the 60,000 steps of its sparse test, which would take minutes.
    """
    if "rosenbrock_sparse" not in request.node.name:
        monkeypatch.setattr(common, "_get_foreach_kernels_supported_devices", lambda: ["cpu", "cuda", "xpu"])


@pytest.mark.parametrize("ours", [RMSprop, Rprop])
def test_gradients_through_a_step(monkeypatch, ours):
    monkeypatch.setattr(load("optim.test_optim"), ours.__name__, ours)
    TESTS.TestDifferentiableOptimizer(f"test_{ours.__name__.lower()}").debug()
