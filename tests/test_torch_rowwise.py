"""PyTorch: row-wise state, against the definition's transcription and NumPy's front end."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import rmsprop
from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop
from tests.test_rowwise import EXACT, ROWWISE, definition, problem

ways = pytest.mark.parametrize(
    "way",
    [
        {},
        {"foreach": True},
        {"foreach": False, "fused": False},
        pytest.param({"fused": True}, marks=pytest.mark.skipif(cpu.native is None, reason="no kernel")),
    ],
    ids=str,
)


def options_of(rule):
    """The rule in torch's words."""
    names = {"beta": "alpha", "epsilon": "eps"}
    values = {names.get(name, name): getattr(rule, name) for name in rule.__dataclass_fields__}
    return values | {"decoupled_weight_decay": values.pop("decay_mode") == "decoupled"}


def sparse(rows, values, shape):
    index = torch.as_tensor(rows)[None]
    return torch.sparse_coo_tensor(index, torch.as_tensor(values), shape, check_invariants=True)


@ways
@pytest.mark.parametrize("rule", ROWWISE.values(), ids=ROWWISE)
def test_every_rule_follows_the_definition(rule, way):
    shapes = [(5, 7), (6, 1), (4, 2, 3), (2, 700), (0, 3), (4, 0), (9,), ()]
    starts, grads = zip(*(problem(shape) for shape in shapes), strict=True)
    params = [nn.Parameter(torch.tensor(start)) for start in starts]
    optimizer = RMSprop(params, state_shape="row", **options_of(rule), **way)
    for step in zip(*grads, strict=True):
        for p, g in zip(params, step, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    for start, own, p in zip(starts, grads, params, strict=True):
        expected, v, b = definition(rule, start, own)
        assert_close(p.detach(), torch.tensor(expected), rtol=1e-12, atol=1e-12)
        assert_close(optimizer.state[p]["square_avg"], torch.tensor(v), rtol=1e-12, atol=0)
        if rule.momentum:
            assert_close(optimizer.state[p]["momentum_buffer"], torch.tensor(b), rtol=1e-12, atol=1e-12)


@ways
@pytest.mark.parametrize("rule", EXACT.values(), ids=EXACT)
def test_embeddings_end_where_the_definition_does(rule, way):
    table = nn.Embedding(40, 3, sparse=True, dtype=torch.float64)
    start, grads = table.weight.detach().numpy().copy(), []
    optimizer = RMSprop(table.parameters(), state_shape="row", **options_of(rule), **way)
    optimizer.attach(table)
    for t in range(25):
        optimizer.zero_grad()
        (table(torch.tensor([t % 7, 3 * t % 11, t % 7])) - 1).square().sum().backward()
        grads.append(table.weight.grad.to_dense().numpy())
        optimizer.step()
    optimizer.flush()
    expected, v, _ = definition(rule, start, grads)
    assert_close(table.weight.detach(), torch.tensor(expected), rtol=1e-11, atol=1e-12)
    assert_close(optimizer.state[table.weight]["square_avg"], torch.tensor(v), rtol=1e-11, atol=0)


@ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_narrow_tables(dtype, is_sparse, way):
    rule = ROWWISE["momentum"]
    start, grads = problem((6, 40), steps=8)
    p = nn.Parameter(torch.tensor(start).to(dtype))
    given = [torch.tensor(g).to(dtype) for g in grads]
    begun = p.detach().double().numpy()
    optimizer = RMSprop([p], state_shape="row", **options_of(rule), **way)
    for g in given:
        optimizer.catch_up(p)
        p.grad = sparse(range(6), g, g.shape) if is_sparse else g
        optimizer.step()
    optimizer.flush()
    expected, v, _ = definition(rule, begun, [g.double().numpy() for g in given])
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    assert_close(p.detach().double(), torch.tensor(expected), rtol=tolerance, atol=tolerance)
    assert optimizer.state[p]["square_avg"].dtype == torch.float32
    assert_close(optimizer.state[p]["square_avg"].double(), torch.tensor(v), rtol=1e-5, atol=0)


def test_every_way_has_the_same_bits_of_mean_squares():
    """In float32, whose squares are summed in double: the order does not show."""
    if cpu.native is None:
        pytest.skip("no kernel here")
    start, grads = problem((6, 40), np.float32)
    results = []
    for way in ({"fused": True}, {"foreach": True}, {"fused": False}):
        p = nn.Parameter(torch.tensor(start))
        optimizer = RMSprop([p], state_shape="row", momentum=0.9, bias_correction=True, **way)
        for g in grads:
            p.grad = torch.tensor(g)
            optimizer.step()
        results.append((p.detach(), optimizer.state[p]["square_avg"]))
    q = start.copy()
    rule = rmsprop.dialect("torch").replace(momentum=0.9, bias_correction=True)
    optimizer = rmsprop.RMSprop([q], rule, state_shape="row")
    for g in grads:
        optimizer.step([g])
    results.append((torch.tensor(q), torch.tensor(optimizer.state_dict()["state"]["params[0]"]["square_avg"])))
    for p, v in results[1:]:
        assert_close(p, results[0][0], rtol=1e-6, atol=1e-6)
        assert torch.equal(v, results[0][1])


@pytest.mark.parametrize("extra", [{"stochastic_rounding": True}, {"state_dtype": torch.bfloat16}], ids=str)
def test_random_rounding_is_the_same_everywhere(extra):
    if cpu.native is None:
        pytest.skip("no kernel here")
    start, grads = problem((7, 33), np.float32)
    results = []
    for way in ({}, {"foreach": True}, {"sparse": True}):
        params = [nn.Parameter(torch.ones(5, dtype=torch.bfloat16)), nn.Parameter(torch.tensor(start).bfloat16())]
        is_sparse = way.pop("sparse", False)
        optimizer = RMSprop(params, state_shape="row", seed=3, **extra, **way)
        for g in grads:
            g = torch.tensor(g).bfloat16()  # noqa: PLW2901
            params[1].grad = sparse(range(7), g, g.shape) if is_sparse else g
            optimizer.step()
        results.append((params[1].detach(), optimizer.state[params[1]]["square_avg"]))
    for p, v in results[1:]:
        assert torch.equal(p, results[0][0])
        assert torch.equal(v, results[0][1])


def test_channels_last_and_transposed():
    for lay in (lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x.transpose(0, 3)):
        start, grads = problem((4, 3, 5, 4))
        p = nn.Parameter(lay(torch.tensor(start)))
        optimizer = RMSprop([p], state_shape="row", momentum=0.9)
        for g in grads:
            p.grad = lay(torch.tensor(g))
            optimizer.step()
        first = lay(torch.tensor(start)).numpy()
        rule = rmsprop.dialect("torch").replace(momentum=0.9)
        expected, _, _ = definition(rule, first, [lay(torch.tensor(g)).numpy() for g in grads])
        assert_close(p.detach(), torch.tensor(expected), rtol=1e-12, atol=1e-12)
        assert optimizer.state[p]["square_avg"].shape == (p.shape[0], 1, 1, 1)


def test_four_bytes_a_row():
    embedding = nn.Embedding(1000, 32, sparse=True)
    optimizer = RMSprop(embedding.parameters(), state_shape="row")
    optimizer.init_state()
    (state,) = optimizer.state.values()
    assert sum(x.numel() * x.element_size() for key, x in state.items() if key != "step") == 4 * 1000


@ways
@pytest.mark.parametrize("copied", ["state_dict", "deepcopy", "pickle"])
def test_it_goes_on_exactly(copied, way):
    results = []
    for is_copied in (False, True):
        torch.manual_seed(0)
        embedding = nn.Embedding(30, 4, sparse=True)
        optimizer = RMSprop(embedding.parameters(), state_shape="row", momentum=0.9, **way)
        optimizer.attach(embedding)
        for t in range(20):
            if t == 11:
                optimizer.flush()
            if t == 11 and is_copied and copied == "state_dict":
                state = optimizer.state_dict()
                optimizer = RMSprop(embedding.parameters(), state_shape="row", **way)
                optimizer.load_state_dict(state)
                optimizer.attach(embedding)
            elif t == 11 and is_copied:
                both = (embedding, optimizer)
                embedding, optimizer = copy.deepcopy(both) if copied == "deepcopy" else pickle.loads(pickle.dumps(both))
                optimizer.attach(embedding)
            optimizer.zero_grad()
            embedding(torch.tensor([t % 7, 3 * t % 11])).square().sum().backward()
            optimizer.step()
        optimizer.flush()
        results.append(embedding.weight.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize(("own", "theirs"), [("row", "full"), ("full", "row"), ("row", "torch")])
def test_state_of_the_other_shape_is_refused_and_nothing_changes(own, theirs):
    p = nn.Parameter(torch.ones(4, 3))
    p.grad = torch.ones(4, 3)
    optimizer = RMSprop([("table", p)], state_shape=own, alpha=0.5)
    other = torch.optim.RMSprop([p]) if theirs == "torch" else RMSprop([p], state_shape=theirs)
    other.step()
    expected = {"full": r"its parameter's shape, \(4, 3\)", "row": r"one number for each row .*, \(4, 1\)"}[own]
    with pytest.raises(ValueError, match=f"table: square_avg is .*: expected a tensor of {expected}"):
        optimizer.load_state_dict(other.state_dict())
    assert not optimizer.state
    assert optimizer.param_groups[0]["alpha"] == 0.5
    assert optimizer.param_groups[0]["state_shape"] == own


def test_options_that_are_loaded_leave_the_shape():
    optimizer, other = (RMSprop([nn.Parameter(torch.ones(4, 3))], state_shape=kind) for kind in ("row", "full"))
    optimizer.load_state_dict(other.state_dict())  # which has no state yet
    optimizer.init_state()
    assert [state["square_avg"].shape for state in optimizer.state.values()] == [(4, 1)]


@ways
@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_run_keeps_its_shape(is_sparse, way):
    for own, other in (("row", "full"), ("full", "row")):
        p = nn.Parameter(torch.ones(4, 3))
        p.grad = sparse([1], torch.ones(1, 3), p.shape) if is_sparse else torch.ones(4, 3)
        optimizer = RMSprop([("table", p)], state_shape=own, **way)
        optimizer.step()
        before = p.detach().clone()
        optimizer.param_groups[0]["state_shape"] = other
        with pytest.raises(ValueError, match=f"table: its square_avg is .* with state_shape='{other}'"):
            optimizer.step()
        assert torch.equal(p, before)
        optimizer.param_groups[0]["state_shape"] = own
        optimizer.step()


def test_what_cannot_be():
    p = nn.Parameter(torch.ones(4, 3))
    for options, message in (
        ({"state_shape": "col"}, r"Invalid state_shape value: 'col': expected one of \('full', 'row'\)"),
        ({"state_shape": "row", "centered": True}, "Invalid state_shape value: 'row': expected 'full' with centered"),
        ({"state_shape": "row", "capturable": True}, "Invalid state_shape value: 'row': expected 'full' with captur"),
    ):
        with pytest.raises(ValueError, match=message):
            RMSprop([p], **options)
    with pytest.raises(ValueError, match=r"params\[0\] is complex: expected state_shape='full'"):
        RMSprop([torch.ones(4, 3, dtype=torch.complex64)], state_shape="row")
    RMSprop([torch.ones(4, dtype=torch.complex64)], state_shape="row")  # whose entries are their own rows
    optimizer = RMSprop([p], state_shape="row")
    p.grad = torch.ones(4, 3)
    with pytest.raises(Exception, match="state_shape='row': a step in a graph"):
        torch.compile(optimizer.step, backend="eager", fullgraph=True)()
    assert (p == 1).all()


@ways
def test_groups_of_both_shapes_and_what_their_rows_showed(way):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [
        {"params": list(model[0].named_parameters("a")), "state_shape": "row"},
        {"params": list(model[1].named_parameters("b"))},
    ]
    optimizer = RMSprop(groups, lr=0.1, eps=1e-3, **way)
    optimizer.watch()
    model(torch.tensor([[1.0, 2.0, 3.0]])).square().sum().backward()
    before = model[0].weight.detach().clone()
    optimizer.step()
    states = [optimizer.state[p]["square_avg"].shape for p in model.parameters()]
    assert states == [(4, 1), (4,), (2, 4), (2,)]
    found = optimizer.stats()["a.weight"]
    g = model[0].weight.grad
    assert found["gradient_rms"] == pytest.approx(float(g.square().mean().sqrt()))
    assert found["update_rms"] == pytest.approx(float((model[0].weight.detach() - before).square().mean().sqrt()))
    d = (0.01 * g.square().mean(1)).sqrt() + 1e-3
    assert found["step_size_50"] in [pytest.approx(float(0.1 / x)) for x in d]


@ways
def test_the_share_of_epsilon_counts_entries(way):
    p = nn.Parameter(torch.ones(4, 3))
    optimizer = RMSprop([("table", p)], state_shape="row", eps=1.0, **way)
    optimizer.watch()
    p.grad = torch.tensor([[100.0], [100.0], [100.0], [0.1]]).expand(4, 3).clone()
    optimizer.step()
    assert optimizer.stats()["table"]["epsilon_share"] == 0.25


def test_autograd_follows_the_step():
    g = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def stepped(g):
        p = torch.ones(3, 4, dtype=torch.float64) + 0 * g
        optimizer = RMSprop([p], differentiable=True, state_shape="row", lr=0.1)
        p.grad = g * 1.0
        optimizer.step()
        return p

    assert torch.autograd.gradcheck(stepped, [g])


def test_a_scaled_gradient_is_divided_by_its_scale():
    if cpu.native is None:
        pytest.skip("no kernel here")
    params = [nn.Parameter(torch.ones(4, 3)) for _ in range(2)]
    optimizers = [RMSprop([p], state_shape="row", fused=True) for p in params]
    g = torch.arange(12.0).reshape(4, 3)
    params[0].grad, params[1].grad = g, 8 * g
    optimizers[1].grad_scale, optimizers[1].found_inf = torch.tensor(8.0), torch.tensor(0.0)
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(*params)
