"""PyTorch: sparse gradients as embeddings make them, against dense gradients and torch's own optimizer."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop

RULES = {
    "plain": {},
    "centered, corrected": {"centered": True, "bias_correction": True},
    "momentum": {"momentum": 0.9},
    "momentum inside, nesterov": {"momentum": 0.9, "momentum_form": "lr_inside", "nesterov": True},
    "decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "all": {
        "momentum": 0.9,
        "momentum_form": "ema",
        "bias_correction": True,
        "centered": True,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
    },
}
rules = pytest.mark.parametrize("options", RULES.values(), ids=RULES)
ways = pytest.mark.parametrize(
    "way",
    [
        {},
        {"foreach": True},
        {"foreach": False},
        pytest.param({"fused": True}, marks=pytest.mark.skipif(cpu.native is None, reason="no kernel")),
    ],
    ids=str,
)


def pair(dtype=torch.float64, kind=nn.Embedding, **options):
    """The same embedding twice, under two optimizers; the first with sparse gradients, attached."""
    torch.manual_seed(0)
    first = kind(40, 3, sparse=True, dtype=dtype)
    second = copy.deepcopy(first)
    second.sparse = False
    optimizers = [RMSprop(module.parameters(), **options) for module in (first, second)]
    optimizers[0].attach(first)
    return (first, second), optimizers


def train(modules, optimizers, steps=30, schedule=True):
    rng = torch.Generator().manual_seed(1)
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in optimizers if schedule]
    for _ in range(steps):
        index = torch.randint(0, 40, (2, 3), generator=rng)
        for module, optimizer in zip(modules, optimizers, strict=True):
            optimizer.zero_grad()
            (module(index) - 1).square().sum().backward()
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def assert_same(modules, optimizers, rtol=1e-11, atol=1e-12):
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]  # which brings the rows up to date
    assert_close(modules[0].weight, modules[1].weight, rtol=rtol, atol=atol)
    assert states[0][0].keys() == states[1][0].keys()
    for name, value in states[1][0].items():
        assert_close(states[0][0][name], value, rtol=rtol, atol=atol)


@rules
@ways
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_end_as_with_dense_gradients(kind, way, options):
    modules, optimizers = pair(kind=kind, **options, **way)
    train(modules, optimizers)
    assert_same(modules, optimizers)


@pytest.mark.parametrize("options", [{}, {"centered": True}], ids=str)
def test_torchs_own_optimizer_with_dense_gradients_agrees_and_goes_on(options):
    modules, optimizers = pair(**options)
    optimizers[1] = torch.optim.RMSprop(modules[1].parameters(), **options)
    train(modules, optimizers)
    assert_close(modules[0].weight, modules[1].weight, rtol=1e-9, atol=1e-10)
    state = optimizers[0].state_dict()
    assert "row_step" not in state["state"][0]
    other = torch.optim.RMSprop(modules[0].parameters(), **options)
    other.load_state_dict(state)
    modules[0].sparse = False
    train(modules, [other, optimizers[1]])
    assert_close(modules[0].weight, modules[1].weight, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@rules
def test_narrow_tables(dtype, options):
    modules, optimizers = pair(dtype, **options, lr=1e-3)
    train(modules, optimizers, schedule=False)
    assert modules[0].weight.grad.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 6e-3}[dtype]  # of 30 roundings
    states = [optimizer.state_dict()["state"][0] for optimizer in optimizers]
    assert_close(modules[0].weight, modules[1].weight, rtol=tolerance, atol=2 * tolerance)
    assert states[0]["variance" if "centered" in options else "square_avg"].dtype == torch.float32


def test_several_tables_and_a_dense_layer_step_in_one_native_call(monkeypatch):
    if cpu.native is None:
        pytest.skip("no kernel here")
    model = nn.ModuleList([nn.Embedding(10, 4, sparse=True), nn.EmbeddingBag(20, 4, sparse=True), nn.Linear(4, 1)])
    optimizer = RMSprop(model.parameters())
    calls = []
    monkeypatch.setattr(
        cpu, "step", lambda groups, threads, kernel=cpu.step: calls.append(1) or kernel(groups, threads)
    )
    for _ in range(3):
        calls.clear()
        optimizer.zero_grad()
        model[2](model[0](torch.tensor([[1, 2]])).sum(1) + model[1](torch.tensor([[3, 4]]))).sum().backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
    assert calls == [1]
    moved = [(p != q).any(-1) for p, q in zip(model.parameters(), before, strict=True)]
    assert moved[0].nonzero()[:, 0].tolist() == [1, 2]
    assert moved[1].nonzero()[:, 0].tolist() == [3, 4]
    assert moved[2].all()


def test_rows_that_nobody_touches_are_not_visited():
    """Where the rule does not move them, not even read: here they hold NaN."""
    table = nn.Parameter(torch.full((1000, 2), torch.nan))
    table.data[5] = 1
    optimizer = RMSprop([table])
    table.grad = torch.sparse_coo_tensor([[5, 5]], torch.ones(2, 2), table.shape, check_invariants=True)
    optimizer.step()
    state = optimizer.state[table]
    assert state["square_avg"].count_nonzero() == 2
    assert state["square_avg"][5].tolist() == pytest.approx([0.04, 0.04])  # the square of the sum
    assert torch.isfinite(table[5]).all()


def test_unless_attached_moving_rows_take_a_dense_step_and_a_warning():
    modules, optimizers = pair(momentum=0.9)
    optimizers[0] = RMSprop(modules[0].parameters(), momentum=0.9)
    with pytest.warns(UserWarning, match=r"parameter 0 of group 0: with momentum .* attach\(\)") as caught:
        train(modules, optimizers, 5)
    assert len(caught) == 1
    assert_close(modules[0].weight, modules[1].weight)


def test_catch_up_by_hand_is_enough():
    modules, optimizers = pair(momentum=0.9)
    table = modules[0].weight
    optimizers[0] = RMSprop([table], momentum=0.9)
    for t in range(20):
        index = torch.tensor([t % 7, 3 * t % 11])
        optimizers[0].catch_up(table, index)
        optimizers[1].zero_grad()
        modules[1](index).square().sum().backward()
        g = 2 * table.detach()[index]
        table.grad = torch.sparse_coo_tensor(index[None], g, table.shape, check_invariants=True)
        for optimizer in optimizers:
            optimizer.step()
    assert_same(modules, optimizers)


def test_rows_read_past_the_hook_are_refused():
    modules, (optimizer, _) = pair(momentum=0.9)
    table = modules[0].weight
    for index in ([1], [2]):
        optimizer.catch_up(table, index)
        table.grad = torch.sparse_coo_tensor(
            [index], torch.ones(1, 3, dtype=torch.float64), table.shape, check_invariants=True
        )
        optimizer.step()
    table.grad = torch.sparse_coo_tensor(
        [[1]], torch.ones(1, 3, dtype=torch.float64), table.shape, check_invariants=True
    )
    before = table.detach().clone()
    with pytest.raises(ValueError, match=r"parameter 0 of group 0: row 1 moves .* step 1 of 2"):
        optimizer.step()
    assert torch.equal(table, before)


@ways
def test_refusals(way):
    table = nn.Parameter(torch.ones(4, 2))
    grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), table.shape, check_invariants=True)
    for options, message in (
        ({"weight_decay": 0.1}, "table: weight_decay=0.1 is coupled.*decoupled"),
        ({"clip_weights": 0.5}, "table: clip_weights=0.5"),
    ):
        optimizer = RMSprop([("table", table)], **options, **way)
        table.grad = grad
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert (table == 1).all()
        optimizer.param_groups[0]["sparse"] = "dense"
        optimizer.step()
        assert (table != 1).any()
        table.data.fill_(1)
    with pytest.raises(ValueError, match=r"Invalid sparse value: 'rows': expected one of"):
        RMSprop([table], sparse="rows")


@ways
@pytest.mark.parametrize("row", [-1, 4])
def test_indices_outside_the_table(row, way):
    table, other = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(3))
    optimizer = RMSprop([("table", table), ("other", other)], **way)
    other.grad = torch.ones(3)
    table.grad = torch.sparse_coo_tensor([[row % 4]], torch.ones(1, 2), table.shape, check_invariants=True)
    table.grad._indices().fill_(row)  # torch checks this itself, unless invariants are not to be checked
    with pytest.raises(IndexError, match=f"table: row index {row}: expected 0 to 3"):
        optimizer.step()
    assert (table == 1).all()
    assert (other == 1).all()
    assert not optimizer.state


def test_lazy_is_tensorflows_rule():
    table = nn.Parameter(torch.zeros(3, 1, dtype=torch.float64))
    for way in ({}, {"foreach": True}):
        optimizer = RMSprop([table], lr=1.0, alpha=0.9, sparse="lazy", momentum=0.5, **way)
        for rows in ([0, 1], [0], [0], [1]):
            values = torch.ones(len(rows), 1, dtype=torch.float64)
            table.grad = torch.sparse_coo_tensor([rows], values, table.shape, check_invariants=True)
            optimizer.step()
        v = optimizer.state[table]["square_avg"][:, 0]
        assert_close(v, torch.tensor([1 - 0.9**3, 1 - 0.9**2, 0], dtype=torch.float64))


@pytest.mark.parametrize(
    "change",
    [{"alpha": 0.9}, {"momentum": 0.5}, {"momentum": 0.0}, {"centered": True}, {"weight_decay": 0.1}],
    ids=str,
)
def test_options_may_change(change):
    modules, optimizers = pair(momentum=0.9, decoupled_weight_decay=True)
    train(modules, optimizers, 10)
    for optimizer in optimizers:
        optimizer.param_groups[0].update(change)
    train(modules, optimizers, 10)
    assert_close(modules[0](torch.arange(40)), modules[1](torch.arange(40)), rtol=1e-11, atol=1e-12)
    optimizers[0].flush()
    assert_close(modules[0].weight, modules[1].weight, rtol=1e-11, atol=1e-12)


def test_one_cycle_changes_momentum_at_every_step():
    modules, optimizers = pair(momentum=0.9)
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20) for o in optimizers]
    for _ in range(15):
        train(modules, optimizers, 1, schedule=False)
        for scheduler in schedulers:
            scheduler.step()
    assert optimizers[0].param_groups[0]["momentum"] != 0.9
    assert_same(modules, optimizers)


def test_dense_and_sparse_gradients_take_turns():
    modules, optimizers = pair(momentum=0.9)
    for sparse in (True, False, True):
        modules[0].sparse = sparse
        train(modules, optimizers, 7)
    assert_same(modules, optimizers)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_of_module_and_optimizer_are_their_own(copied):
    modules, optimizers = pair(momentum=0.9)
    train(modules, optimizers, 7)
    module, optimizer = copied((modules[0], optimizers[0]))
    assert optimizer.param_groups[0]["params"][0] is module.weight
    optimizer.flush()
    assert_close(module.weight, modules[1].weight, rtol=1e-11, atol=1e-12)
    optimizer.attach(module)
    before = modules[0].weight.detach().clone()
    other = copy.deepcopy(modules[1])
    dense = RMSprop(other.parameters(), momentum=0.9)
    dense.load_state_dict(optimizers[1].state_dict())
    train((module, other), (optimizer, dense), 7)
    assert_same((module, other), (optimizer, dense))
    assert torch.equal(modules[0].weight, before)


def test_resume_is_exact():
    modules, optimizers = pair(momentum=0.9, centered=True)
    train(modules, optimizers, 10)
    state = copy.deepcopy((modules[0].state_dict(), optimizers[0].state_dict()))
    module = nn.Embedding(40, 3, sparse=True, dtype=torch.float64)
    optimizer = RMSprop(module.parameters(), momentum=0.9)
    optimizer.load_state_dict(state[1])
    module.weight.data.copy_(modules[1].weight.data)
    optimizer.attach(module)
    train((module, modules[1]), (optimizer, optimizers[1]), 10)
    assert_same((module, modules[1]), (optimizer, optimizers[1]))


def test_the_hook_can_be_removed_and_a_foreign_module_is_refused():
    module = nn.Embedding(4, 2, sparse=True)
    optimizer = RMSprop(module.parameters())
    optimizer.attach(module).remove()
    assert not module._forward_pre_hooks
    with pytest.raises(ValueError, match="a module whose weight is one"):
        optimizer.attach(nn.Embedding(4, 2))
    module.weight.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (4, 2), check_invariants=True)
    optimizer.step()
    with pytest.raises(ValueError, match="expected integers"):
        optimizer.catch_up(module.weight, torch.tensor([0.5]))
    for _ in range(2):
        with pytest.raises(IndexError, match="row index 4: expected 0 to 3"):
            optimizer.catch_up(module.weight, [4])
        optimizer.flush()


def test_a_models_state_dict_is_up_to_date():
    modules, optimizers = pair(momentum=0.9)
    models = [nn.Sequential(module) for module in modules]
    train(modules, optimizers)
    assert_close(models[0].state_dict(), models[1].state_dict(), rtol=1e-11, atol=1e-12)


def test_complex_tables():
    start = torch.randn(6, 2, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    tables = [nn.Parameter(start.clone()) for _ in range(2)]
    optimizers = [RMSprop([table], momentum=0.9) for table in tables]
    for t in range(10):
        rows = torch.tensor([t % 6, t % 4])
        optimizers[0].catch_up(tables[0], rows)
        g = torch.randn(2, 2, dtype=torch.complex128)
        tables[0].grad = torch.sparse_coo_tensor(rows[None], g, start.shape, check_invariants=True)
        tables[1].grad = tables[0].grad.to_dense()
        for optimizer in optimizers:
            optimizer.step()
    optimizers[0].flush()
    assert_close(*tables, rtol=1e-12, atol=1e-13)


def test_transposed_tables_and_fully_sparse_gradients():
    """What the kernel does not take gives the same result."""
    start = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).T
    tables = [nn.Parameter(start.clone(memory_format=torch.preserve_format)) for _ in range(3)]
    optimizers = [RMSprop([table]) for table in tables]
    for t in range(10):
        rows = torch.tensor([t % 6, t % 4])
        g = torch.sparse_coo_tensor(rows[None], torch.randn(2, 2, dtype=torch.float64), (6, 2), check_invariants=True)
        for table, optimizer, grad in zip(
            tables, optimizers, (g, g.to_dense(), g.to_dense().to_sparse(2)), strict=True
        ):
            table.grad = grad
            optimizer.step()
    assert tables[0].stride() == (1, 6)
    assert_close(tables[0], tables[1], rtol=1e-12, atol=1e-13)
    assert_close(tables[2], tables[1], rtol=1e-12, atol=1e-13)


def test_random_rounding_depends_on_the_rows_alone():
    """The bits of a row do not depend on which other rows are touched with it."""
    if cpu.native is None:
        pytest.skip("no kernel here")
    results = []
    for rows in ([3], [7, 3, 1], [3, 3]):
        table = nn.Parameter(torch.ones(10, 64, dtype=torch.bfloat16))
        optimizer = RMSprop([table], lr=1e-3, stochastic_rounding=True)
        values = torch.full((len(rows), 64), 1.0 / rows.count(3), dtype=torch.bfloat16)
        table.grad = torch.sparse_coo_tensor([rows], values, table.shape, check_invariants=True)
        optimizer.step()
        results.append(table[3].detach())
    assert len(results[0].unique()) == 2
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_versions_move_only_where_something_was_written():
    modules, (optimizer, _) = pair(momentum=0.9)
    train(modules[:1], [optimizer], 3, schedule=False)
    out = modules[0](torch.tensor([1, 2]))
    version = modules[0].weight._version
    modules[0](torch.tensor([1, 2]))  # nothing has been missed since
    assert modules[0].weight._version == version
    out.sum().backward()


def test_statistics_are_of_the_rows_touched():
    module = nn.Embedding(10, 2, sparse=True)
    optimizer = RMSprop([("table", module.weight)], lr=0.01)
    optimizer.watch()
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.tensor([3])).sum().backward()
        optimizer.step()
    assert optimizer.stats()["table"]["gradient_rms"] == 1.0


def test_a_step_in_a_graph_wants_a_flush_first(monkeypatch):
    module = nn.Embedding(10, 2, sparse=True)
    optimizer = RMSprop(module.parameters())
    module(torch.tensor([3])).sum().backward()
    optimizer.step()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(RuntimeError, match=r"call flush\(\) before a step in a graph"):
        optimizer.step()


def test_a_step_with_sparse_gradients_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(*(x[:1] for x in pair()))
