import shutil

import numpy as np
import pytest
import torch

from rmsprop.checkpoint import from_optax, read
from rmsprop.cli.__main__ import main
from tests.checkpoint.problem import go_on
from tests.checkpoint.test_recorded import FOLDER, named, recorded


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def converted(capsys, *arguments):
    """What was said."""
    assert main(["convert", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    return err


#: source, target, its file, options for the way there, options for reading the result
WAYS = [
    ("keras.keras", "timm", "x.pt", [], {}),
    ("keras.keras", "native", "x.safetensors", [], {}),
    ("timm.pt", "native", "x.safetensors", [], {}),
    ("tf1.slots.npz", "timm", "x.pt", ["lr=0.01", "momentum=0.9", "epsilon=0.001"], {}),
    ("keras_centered.keras", "tf1", "x.npz", [], {"lr": 0.01, "epsilon": 1e-7}),
    ("keras_plain.keras", "sb3", "x.pt", [], {"library": "sb3"}),
    ("tf1.slots.npz", "optax", "x.npz", ["lr=0.01", "momentum=0.9", "epsilon=0.001"], None),
    ("optax.state.npz", "optax", "x.npz", ["lr=0.01", "momentum=0.9", "eps_in_sqrt=false", "nesterov=true"], None),
    ("adam.pt", "adam", "x.pt", [], {}),
    ("torch_centered.pt", "torch", "x.pt", [], {}),
    ("bitsandbytes.pt", "torch", "x.pt", [], {}),
    (
        "keras_plain.keras",
        "keras",
        "x.weights.h5",
        [],
        {"momentum": 0, "centered": False, "rho": 0.9, "epsilon": 1e-7, "weight_decay": 0},
    ),
]


@pytest.mark.parametrize(("source", "to", "target", "told", "reading"), WAYS)
def test_the_steps_after_are_those_of_the_source(source, to, target, told, reading, capsys):
    options = [part for option in told for part in ("--set", option)]
    said = converted(capsys, FOLDER / source, "--to", to, "-o", target, *options)
    assert f"2 parameters in {target}" in said
    if reading is None:
        reading = dict(option.split("=") for option in told)
        reading = {
            key: {"true": True, "false": False}.get(x) if x.isalpha() else float(x) for key, x in reading.items()
        }
    checkpoint = read(target, **reading).checkpoint
    after = recorded(source, "after")
    for name, p in go_on(named(checkpoint), recorded(source, "at")).items():
        np.testing.assert_allclose(p, after[name], rtol=0, atol=1.2e-7)


def test_notes_are_told_once(capsys):
    said = converted(capsys, FOLDER / "timm.pt", "--to", "native", "-o", "x.safetensors").splitlines()
    assert said[0] == "note: taken from ['optimizer'] of the file"
    options = ["--set", "epsilon_mode=outside", "--set", "weight_decay=0"]
    said = converted(capsys, "x.safetensors", "--to", "torch", "-o", "x.pt", *options)
    assert said.count("note: momentum_buffer: divided by lr=0.01") == 1
    assert "optimizer.load_state_dict(torch.load(FILE)), of torch.optim.RMSprop" in said
    params = [torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(4))]
    optimizer = torch.optim.RMSprop(params)
    optimizer.load_state_dict(torch.load("x.pt"))
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_lossy_origins_are_told(capsys):
    said = converted(capsys, FOLDER / "bitsandbytes_8bit.pt", "--to", "torch", "-o", "x.pt")
    assert "note: lossy origin: square_avg of 0 was stored in 8 bits" in said


def test_the_options_to_go_on_with_are_told(capsys):
    said = converted(capsys, FOLDER / "keras_plain.keras", "--to", "optax", "-o", "x.npz", "--rename", "0=w")
    assert "options: optax.rmsprop(learning_rate=0.00999" in said
    with np.load("x.npz") as file:
        assert set(file.files) == {"[0].nu['w']", "[0].nu['1']"}
        assert from_optax(dict(file), learning_rate=0.01).names == ("w", "1")


def test_an_existing_file_is_kept_unless_forced(folder, capsys):
    (folder / "x.pt").write_text("mine")
    arguments = ["convert", str(FOLDER / "torch.pt"), "--to", "torch", "-o", "x.pt"]
    assert main(arguments) == 2
    assert "x.pt: exists already; expected a new file, or --force" in capsys.readouterr().err
    assert (folder / "x.pt").read_text() == "mine"
    assert main([*arguments, "--force"]) == 0
    assert torch.load("x.pt")["param_groups"][0]["alpha"] == 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "torch.pt --to keras -o x.weights.h5",
            "Keras 3's RMSprop cannot have epsilon_mode='outside': expected 'inside'",
        ),
        ("torch.pt --to nobody -o x", "--to nobody: expected one of native, torch"),
        ("torch.pt --to native -o x.pt", "x.pt: expected a name that ends in .safetensors, for native"),
        ("timm.pt --to tf1 -o x.npy", "x.npy: expected a name that ends in .npz, for tf1"),
        ("none.pt --to torch -o x", "none.pt: No such file or directory"),
        ("torch.pt --to torch -o no/x.pt", "No such file or directory"),
        ("torch.pt --to torch -o x.pt --rename w", "--rename w: expected OLD=NEW"),
        ("torch.pt --to torch -o x.pt --rename u=v", "names: ['u'] are not here"),
        ("torch.pt --to torch -o x.pt --rename w=b", "two parameters would have one name"),
        ("sb3.pt --to native -o x.safetensors", "expected 'torch' or 'sb3'"),
        ("keras.weights.h5 --to timm -o x.pt", "momentum, centered: 4 arrays"),
        ("tf1.slots.npz --to timm -o x.pt --set momentum=0.9", "learning_rate is not in the state"),
        ("tf1.slots.npz --to native -o x.safetensors", "momentum is not in the checkpoint"),
        ("torch.pt --to torch", "--output"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, capsys, arguments, message):
    for name in ("torch.pt", "timm.pt", "sb3.pt", "keras.weights.h5", "tf1.slots.npz"):
        shutil.copy(FOLDER / name, folder)
    before = sorted(folder.iterdir())
    assert main(["convert", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert sorted(folder.iterdir()) == before
