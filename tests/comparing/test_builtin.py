"""The built-in problems: their data, and that their models train as replicas just as they do alone."""

import gzip
import random
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.func import functional_call, vmap

from rmsprop.comparing import builtin, data
from rmsprop.comparing.networks import Gru, Transformer

SHAPES = {  # of the inputs: rows of train, valid and test, and the rest
    "digits": (1197, 300, 300, (64,)),
    "mnist1d": (3000, 1000, 1000, (40,)),
    "letters": (12668, 2000, 4000, (16,)),
    "fashion": (20000, 500, 2000, (1, 28, 28)),
    "autoencoder": (20000, 500, 2000, (196,)),
    "gru": (20377, 128, 256, (32,)),
    "transformer": (20377, 128, 256, (32,)),
    "cooccurrence": (108673, 4000, 20000, (2,)),
}
ALWAYS = {"digits", "mnist1d", "gru", "transformer", "cooccurrence"}


@cache
def load(name):
    return builtin.BUILTIN[name]()


@pytest.fixture(params=SHAPES)
def problem(request):
    try:
        return load(request.param)
    except data.DataMissing as error:
        if request.param in ALWAYS:
            raise
        pytest.skip(str(error))


def splits(problem):
    return problem.train, problem.valid, problem.test


def test_every_problem_is_tested():
    assert list(builtin.BUILTIN) == list(SHAPES)


def test_shapes_and_dtypes(problem):
    *rows, shape = SHAPES[problem.name]
    assert [len(part) for part in splits(problem)] == rows
    whole = problem.name in {"gru", "transformer", "cooccurrence"}
    labels = problem.name not in {"autoencoder", "cooccurrence"}
    for inputs, targets in splits(problem):
        assert inputs.shape[1:] == shape
        assert len(inputs) == len(targets)
        assert inputs.dtype == (torch.int64 if whole else torch.float32)
        assert targets.dtype == (torch.int64 if labels else torch.float32)
        assert torch.isfinite(inputs).all()


def test_no_row_is_in_two_splits(problem):
    rows = [{row.numpy().tobytes() for row in part.inputs} for part in splits(problem)]
    if problem.name in {"gru", "transformer"}:  # the text repeats itself: "And the LORD spake unto Moses, saying,"
        assert all(len(a & b) < 0.02 * len(b) for a, b in combinations(rows, 2))
    elif problem.name in {"letters", "fashion", "autoencoder"}:  # different letters may look alike
        assert all(len(a & b) < 0.005 * len(b) for a, b in combinations(rows, 2))
    else:
        assert not any(a & b for a, b in combinations(rows, 2))


def test_loading_twice_gives_the_same_and_leaves_random_numbers_alone(problem):
    def states():
        return random.getstate(), str(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()

    random.random(), np.random.rand()  # elsewhere than where the first loading would have left them
    before = states()
    again = builtin.BUILTIN[problem.name]()
    for a, b in zip(splits(problem), splits(again), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
    assert states() == before


def test_a_seed_is_a_start(problem):
    a, b, c = (torch.nn.utils.parameters_to_vector(problem.start(seed).parameters()) for seed in (0, 0, 1))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert (a != c).float().mean() > 0.5


def test_a_pass_takes_every_row_once(problem):
    order = problem.order(3)
    assert order.shape == (problem.steps, problem.batch_size)
    rows = order.flatten()
    for start in range(0, len(rows), len(problem.train)):
        one = rows[start : start + len(problem.train)]
        assert len(one.unique()) == len(one)
    assert rows.max() < len(problem.train)


def test_replicas_are_single_models(problem):
    models = [problem.start(seed) for seed in range(3)]
    batches = torch.stack([problem.order(seed)[0, :8] for seed in range(3)])
    x, y = problem.train.inputs[batches], problem.train.targets[batches]
    names = dict(models[0].named_parameters())
    stacked = {n: torch.stack([dict(m.named_parameters())[n].detach() for m in models]).requires_grad_() for n in names}

    def one(parameters, x, y):
        outputs = functional_call(models[0], parameters, (x,))
        return problem.loss(outputs, y), outputs

    losses, outputs = vmap(one)(stacked, x, y)
    losses.sum().backward()
    for i, model in enumerate(models):
        alone = model(x[i])
        loss = problem.loss(alone, y[i])
        loss.backward()
        torch.testing.assert_close(outputs[i], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(losses[i], loss, rtol=1e-5, atol=1e-5)
        for name, p in model.named_parameters():
            torch.testing.assert_close(stacked[name].grad[i], p.grad, rtol=1e-5, atol=1e-5)
        if problem.error is not None:
            assert problem.error(alone, y[i]) == (alone.argmax(1) != y[i]).sum() / 8


def test_a_few_steps_learn(problem):
    model = problem.start(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for rows in problem.order(0)[:60]:
        loss = problem.loss(model(problem.train.inputs[rows]), problem.train.targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.9 * losses[0]


def test_gru_is_torchs():
    torch.manual_seed(0)
    ours, peer = Gru(11, 5), torch.nn.GRU(11, 5, batch_first=True)
    with torch.no_grad():
        peer.weight_ih_l0.copy_(ours.given.T)
        peer.weight_hh_l0.copy_(torch.cat([ours.gates, ours.new], 1).T)
        peer.bias_ih_l0.zero_()
        peer.bias_hh_l0.copy_(torch.cat([torch.zeros(10), ours.bias]))
    symbols = torch.randint(11, (4, 7))
    states, _ = peer(torch.nn.functional.one_hot(symbols, 11).float())
    torch.testing.assert_close(ours(symbols), ours.scores(states))


def test_transformer_block_is_torchs():
    torch.manual_seed(0)
    ours = Transformer(11, 7, 8, 2, 1).blocks[0]
    peer = torch.nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    pairs = [
        (peer.self_attn.out_proj, ours.mix),
        (peer.linear1, ours.perceptron[0]),
        (peer.linear2, ours.perceptron[2]),
    ]
    for theirs, mine in [*pairs, (peer.norm1, ours.norms[0]), (peer.norm2, ours.norms[1])]:
        torch.nn.init.uniform_(mine.bias)
        theirs.load_state_dict(mine.state_dict())
    with torch.no_grad():
        peer.self_attn.in_proj_weight.copy_(ours.inputs.weight)
        peer.self_attn.in_proj_bias.copy_(ours.inputs.bias)
    x = torch.randn(3, 7, 8)
    later = torch.nn.Transformer.generate_square_subsequent_mask(7)
    torch.testing.assert_close(ours(x), peer(x, src_mask=later))


def test_targets_are_the_next_characters():
    (train, valid, test), symbols = data.characters(32, 128, 256)
    alphabet = sorted(set(data.text()))
    assert symbols == len(alphabet) == 62
    for part in (train, valid, test):
        assert torch.equal(part.inputs[:, 1:], part.targets[:, :-1])
    for part, start in ((train, 0), (valid, 815101 - 2 * 81510), (test, 815101 - 81510)):
        assert "".join(alphabet[i] for i in part.inputs[0]) == data.text()[start : start + 32]
    assert "".join(alphabet[i] for i in train.inputs[0]) == "In the beginning God created the"


def test_pairs_are_counts():
    words = {"the": 0, "and": 1}  # the two most frequent
    found = {(i, j): y for part in data.pairs(1500, 5) for (i, j), y in zip(part[0].tolist(), part[1], strict=True)}
    text = data.text().lower().replace("'", " ").translate(str.maketrans(",.:;?!()-\n", " " * 10)).split()
    after = sum(word == "and" for i, w in enumerate(text) if w == "the" for word in text[i + 1 : i + 6])
    assert found[words["the"], words["and"]] == pytest.approx(np.log1p(after), rel=1e-3)
    assert min(found.values()) == pytest.approx(np.log(2))


def idx(path, values, pack=gzip.open):
    with pack(path, "wb") as file:
        head = np.array(values.shape, ">u4").tobytes()
        file.write(bytes([0, 0, 8, values.ndim]) + head + values.astype(np.uint8).tobytes())


@pytest.mark.parametrize("pack", [open, gzip.open])
def test_files_are_found_in_any_layout(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(data, "FASHION", tmp_path / "none")
    monkeypatch.setenv("RMSPROP_DATA", str(tmp_path))
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    values = np.arange(5 * 6).reshape(5, 2, 3)
    idx(inner / ("some-idx3-ubyte" + (".gz" if pack is gzip.open else "")), values, pack)
    assert data.idx("some-idx3-ubyte", 4).tolist() == values[:4].tolist()


def test_not_an_idx_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RMSPROP_DATA", str(tmp_path))
    (tmp_path / "some").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="not a file of bytes in IDX format"):
        data.idx("some", 1)


@pytest.mark.parametrize(
    ("name", "says"), [("letters", "apt install r-cran-mlbench"), ("fashion", "apt install dataset-fashion-mnist")]
)
def test_missing_files(name, says, tmp_path, monkeypatch):
    if name == "letters":
        pytest.importorskip("rdata")
    monkeypatch.setattr(data, "FASHION", tmp_path)
    monkeypatch.setattr(data, "MLBENCH", tmp_path)
    monkeypatch.delenv("RMSPROP_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=f"{says}.*RMSPROP_DATA"):
        builtin.BUILTIN[name]()
    monkeypatch.setenv("RMSPROP_DATA", str(tmp_path / "no"))
    with pytest.raises(data.DataMissing, match=r"'.*no', which is not a folder"):
        builtin.BUILTIN[name]()


@pytest.mark.parametrize(
    ("name", "package"), [("mnist1d", "mnist1d"), ("letters", "rdata"), ("digits", "scikit-learn")]
)
def test_missing_packages(name, package, monkeypatch):
    module = {"mnist1d": "mnist1d.data", "letters": "rdata", "digits": "sklearn.datasets"}[name]
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(data.DataMissing, match=f"pip install {package}"):
        builtin.BUILTIN[name]()
