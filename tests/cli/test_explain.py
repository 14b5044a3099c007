import pytest

import rmsprop
from rmsprop.cli.__main__ import main


def test_it_prints_what_explain_finds(capsys):
    assert main(["explain", "impala", "torchbeast"]) == 0
    assert capsys.readouterr().out == f"{rmsprop.explain('impala', 'torchbeast')}\n"


def test_options_are_set_on_either_side(capsys):
    command = "explain torch torch --set-a centered=true --set-a lr=1e-3 --set-b clip=none --set-b epsilon_mode=inside"
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split("  ")[-2:] == [
        "torch centered=true lr=1e-3",
        "torch clip=none epsilon_mode=inside",
    ]
    rows = dict(line.split(maxsplit=1) for line in out.splitlines()[1:4])
    assert {name: row.split()[:2] for name, row in rows.items()} == {
        "lr": ["0.001", "0.01"],
        "epsilon_mode": ["outside", "inside"],
        "centered": ["True", "False"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("torch kers", "did you mean 'keras'?"),
        ("torch keras --set-a lr", "--set-a lr: expected NAME=VALUE"),
        ("torch keras --set-b lr=fast", "lr='fast': expected a finite number"),
        ("torch keras --set-b momentun=1", "rmsprop: --set-b: 'momentun' is not an option"),
        ("torch", "Missing argument 'B'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(["explain", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_the_help_has_examples_a_line_each(capsys):
    assert main(["explain", "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[lines.index("Examples:") + 1] == "rmsprop explain torch keras"
