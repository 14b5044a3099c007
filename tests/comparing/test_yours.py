import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from rmsprop.comparing.yours import budget, from_function, from_table, resized

X, Y = torch.arange(60.0).reshape(20, 3), torch.arange(20.0).reshape(20, 1)


class Rows(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, i):
        return X[i].numpy(), Y[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(X[0], Y[0])])


class Triples(Rows):
    def __getitem__(self, i):
        return X[i], Y[i], i


def problem_of(data, model=lambda: nn.Linear(3, 1), loss=mse_loss, **options):
    return from_function(lambda: (model(), loss, data), "mine", **options)


def all_rows(problem):
    return torch.cat([problem.train.inputs, problem.valid.inputs, problem.test.inputs])


WHOLE = {
    "tensors": (X, Y),
    "list": [X, Y],
    "arrays": (X.double().numpy(), Y.numpy()),
    "frame": (pd.DataFrame(X.double().numpy()), pd.DataFrame(Y.numpy())),
    "dataset": Rows(),
    "tensor dataset": TensorDataset(X, Y),
    "subset": Subset(Rows(), range(20)),
    "loader": DataLoader(Rows(), batch_size=7, shuffle=True),
    "dict": {"train": (X, Y)},
    "one of a list": [Rows()],
}


@pytest.mark.parametrize("form", WHOLE)
def test_data_in_every_form_are_split_three_ways(form):
    problem = problem_of(WHOLE[form])
    assert [len(part) for part in (problem.train, problem.valid, problem.test)] == [12, 4, 4]
    for part in (problem.train, problem.valid, problem.test):
        assert part.inputs.dtype == part.targets.dtype == torch.float32
        torch.testing.assert_close(part.inputs[:, :1] / 3, part.targets)
    assert sorted(all_rows(problem)[:, 0].tolist()) == X[:, 0].tolist()
    assert torch.equal(problem.test.inputs, problem_of((X, Y)).test.inputs)


def test_parts_that_are_given_stay_as_they_are():
    test = (X + 100, Y)
    two = problem_of({"train": (X, Y), "test": test})
    assert torch.equal(two.test.inputs, X + 100)
    assert [len(two.train), len(two.valid)] == [16, 4]
    pairs = problem_of([(X, Y), TensorDataset(*test)])
    assert torch.equal(pairs.valid.inputs, X + 100)
    assert [len(pairs.train), len(pairs.test)] == [16, 4]
    three = problem_of(((X, Y), test, (X + 200, Y)))
    assert torch.equal(three.train.inputs, X)
    assert torch.equal(three.test.inputs, X + 200)


def test_arrays_take_the_models_dtype_and_whole_numbers_become_classes():
    x, y = np.ones((20, 3), np.float32), np.arange(20, dtype=np.int32) % 2
    problem = problem_of((x, y), lambda: nn.Linear(3, 2).double(), nn.CrossEntropyLoss())
    assert (problem.train.inputs.dtype, problem.train.targets.dtype) == (torch.float64, torch.int64)


def test_the_function_is_called_once_a_seed_and_the_first_call_gives_the_data():
    calls = []

    def function():
        calls.append(torch.initial_seed())
        return nn.Linear(3, 1), mse_loss, (X + len(calls), Y)

    state = torch.get_rng_state()
    problem = from_function(function, "mine")
    weights = {seed: problem.start(seed).weight for seed in (0, 1, 2, 1, 0)}
    assert calls == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), state)
    assert all_rows(problem).max() == X.max() + 1
    for seed, weight in weights.items():
        torch.manual_seed(seed)
        assert torch.equal(weight, nn.Linear(3, 1).weight)
    changed = problem.start(0)
    with torch.no_grad():
        changed.weight.zero_()
    assert torch.equal(problem.start(0).weight, weights[0])


def test_the_budget_suits_the_data():
    assert budget(20, None, None) == (200, 8)
    assert budget(5, None, None) == (200, 5)
    assert budget(1600, None, None) == (500, 64)
    assert budget(10**6, None, None) == (1000, 64)
    assert budget(1600, 7, 10) == (7, 10)
    with pytest.raises(ValueError, match=r"batch_size=21: expected at most 20, the number of training rows"):
        budget(20, None, 21)
    problem = problem_of((X, Y), steps=30, batch_size=5)
    assert (problem.steps, problem.batch_size) == (30, 5)
    other = resized(problem, 10, None)
    assert (other.steps, other.batch_size, other.train) == (10, 5, problem.train)


MODEL = nn.Linear(3, 1)
FROZEN = nn.Linear(3, 1).requires_grad_(False)
MIXED = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1).double())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "it returned a NoneType; expected a tuple (model, loss, data)"),
        ((MODEL, mse_loss), "it returned a tuple of 2; expected a tuple (model, loss, data)"),
        ((mse_loss, MODEL, (X, Y)), "the model it returned is a function; expected a tuple"),
        ((MODEL, "mse", (X, Y)), "the loss it returned is a str; expected a tuple"),
        ((FROZEN, mse_loss, (X, Y)), "no parameter that requires a gradient"),
        ((nn.Linear(3, 1, device="meta"), mse_loss, (X, Y)), "is on meta; expected it on the cpu"),
        ((MIXED, mse_loss, (X, Y)), "parameters are torch.float32 and torch.float64; expected one dtype"),
        ((MODEL, mse_loss, 3), "the train data are a int; expected a Dataset, a DataLoader or a pair"),
        ((MODEL, mse_loss, Stream()), "the train data are a Stream; expected a Dataset"),
        ((MODEL, mse_loss, Triples()), "the train data, a Triples, do not have rows (input, target)"),
        ((MODEL, mse_loss, {"train": (X, Y), "val": (X, Y)}), "the keys 'train', 'val'; expected 'train', and"),
        ((MODEL, mse_loss, {"test": (X, Y)}), "the keys 'test'; expected 'train', and perhaps 'valid' and 'test'"),
        ((MODEL, mse_loss, [Rows()] * 4), "the data are a list of 4; expected two or three parts"),
        ((MODEL, mse_loss, (X, Y[:5])), "the train data are of shapes (20, 3) and (5, 1); expected as many"),
        ((MODEL, mse_loss, {"train": (X, Y), "test": (X[:0], Y[:0])}), "the test data are of shapes (0, 3) and (0, 1)"),
        ((MODEL, mse_loss, (np.array(["a"] * 20), Y)), "the train data hold <U1 values; expected numbers"),
        ((MODEL, mse_loss, (X[:9], Y[:9])), "the data have 9 training rows; expected at least 10"),
        ((MODEL, nn.MSELoss(reduction="none"), (X, Y)), "its loss gave a result of shape (8, 1); expected a scalar"),
        ((MODEL, lambda o, t: 1.0, (X, Y)), "its loss gave a result of float; expected a scalar tensor"),
        ((MODEL, lambda o, t: mse_loss(o.detach(), t), (X, Y)), "its loss has no gradient"),
    ],
)
def test_what_a_function_may_not_return(returned, message):
    with pytest.raises(ValueError, match="expected") as error:
        from_function(lambda: returned, "mine")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("model", "loss", "data", "message"),
    [
        (nn.Linear(4, 1), mse_loss, (X, Y), r"on train rows of shape \(8, 3\): RuntimeError: mat1 and mat2 shapes"),
        (MODEL, mse_loss, (X.double(), Y), r"on train rows of shape \(8, 3\): RuntimeError: mat1 and mat2 must have"),
        (nn.Linear(3, 2), nn.CrossEntropyLoss(), (X, Y[:, 0].long() + 2), "IndexError: Target .* is out of bounds"),
        (MODEL, mse_loss, {"train": (X, Y), "test": (X[:, :2], Y)}, r"on test rows of shape \(10, 2\): RuntimeError"),
    ],
)
def test_what_does_not_fit_is_told_by_its_rows(model, loss, data, message):
    with pytest.raises(ValueError, match=f"its model or loss failed .*{message}"):
        from_function(lambda: (model, loss, data), "mine")


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_a_late_row_that_does_not_fit_is_told_before_training(part):
    codes = {name: torch.zeros(40).long() for name in ("train", "valid", "test")}
    late = problem_of(_codes(codes), lambda: nn.Linear(3, 2), nn.CrossEntropyLoss()).order(0)[0]
    codes[part][next(i for i in range(39, 0, -1) if i not in late)] = 7
    with pytest.raises(ValueError, match=rf"failed on {part} rows of shape \(8, 3\): IndexError: Target 7 is out of"):
        problem_of(_codes(codes), lambda: nn.Linear(3, 2), nn.CrossEntropyLoss())


def _codes(codes):
    return {name: (torch.ones(40, 3), y) for name, y in codes.items()}


@pytest.mark.parametrize("function", [lambda config: config, nn.Linear(3, 1)])
def test_a_function_that_takes_arguments_is_refused(function):
    expected = "calling it failed: TypeError: .* missing 1 required .*; expected a function without arguments"
    with pytest.raises(ValueError, match=expected):
        from_function(function, "mine")


def test_a_model_must_be_the_same_for_every_seed():
    widths = iter((4, 4, 5))
    problem = from_function(lambda: (nn.Linear(3, next(widths)), lambda o, t: o.mean(), (X, Y)), "mine")
    problem.start(1)
    with pytest.raises(
        ValueError, match=r"between seeds: 'weight' is \(4, 3\) for seed 0 and \(5, 3\) for seed 2; exp"
    ):
        problem.start(2)
    biased = iter((True, False))
    problem = from_function(lambda: (nn.Linear(3, 1, bias=next(biased)), mse_loss, (X, Y)), "mine")
    with pytest.raises(ValueError, match=r"'bias' is .* for seed 0 and missing for seed 1"):
        problem.start(1)


def test_sparse_gradients_are_refused_by_name():
    model = nn.Sequential(nn.Embedding(20, 3, sparse=True), nn.Flatten(), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"gradient of '0.weight', of its Embedding, is sparse; expected sparse=False"):
        problem_of((torch.arange(20), Y), lambda: model)


def test_random_rows_of_a_data_set_are_the_same_every_time():
    class Drawn(Rows):
        def __getitem__(self, i):
            return X[i] + torch.rand(()), Y[i]

    assert torch.equal(*(all_rows(problem_of(Drawn())) for _ in range(2)))


TABLE = pd.DataFrame({"a": np.arange(50.0), "city": ["Ulm", "Bonn"] * 25, "price": np.arange(50.0) * 3})


def test_a_table_is_split_and_standardised_by_its_training_rows():
    problem = from_table(TABLE, "price", "houses")
    assert [len(part) for part in (problem.train, problem.valid, problem.test)] == [30, 10, 10]
    assert problem.train.inputs.shape == (30, 3)
    np.testing.assert_allclose(problem.train.inputs[:, 0].mean(), 0, atol=1e-6)
    assert abs(float(problem.valid.inputs[:, 0].mean())) > 1e-3
    assert problem.error is None
    assert problem.about == "regression of 'price' from 2 columns, perceptron 3-256-128-1"
    assert sorted(all_rows(problem)[:, 0].tolist()) == sorted(set(all_rows(problem)[:, 0].tolist()))
    outputs = problem.start(0)(problem.valid.inputs)
    torch.testing.assert_close(
        problem.loss(outputs, problem.valid.targets), mse_loss(outputs[:, 0], problem.valid.targets)
    )


def test_a_table_of_classes_keeps_their_proportions_and_has_a_share_of_errors():
    problem = from_table(TABLE, "city", "houses", steps=7, batch_size=3)
    assert [part.targets.sum().item() for part in (problem.train, problem.valid, problem.test)] == [15, 5, 5]
    outputs = torch.eye(2)[[0, 1, 1]]
    assert problem.error(outputs, torch.tensor([0, 1, 0])).item() == pytest.approx(1 / 3)
    assert (problem.steps, problem.batch_size) == (7, 3)
    a, b, again = (problem.start(seed)[0].weight for seed in (0, 1, 0))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


def test_a_table_that_cannot_be_learned_from_is_refused_by_column():
    with pytest.raises(ValueError, match=r"target='prise': no such column \(did you mean 'price'\?\)"):
        from_table(TABLE, "prise", "houses")
    few = pd.DataFrame({"a": np.arange(24.0), "kind": ["x"] * 11 + ["y"] * 11 + ["z"] * 2})
    with pytest.raises(ValueError, match="the table has 24 rows: expected at least 13, and of classes three"):
        from_table(few, "kind", "kinds")
