import numpy as np
import pandas as pd
import pytest

import rmsprop
from rmsprop.cli.__main__ import main

n = 60
rng = np.random.default_rng(0)
TABLE = pd.DataFrame({"a": rng.normal(size=n), "city": rng.choice(["Ulm", "Bonn"], n)})
SIGN = np.where(TABLE["a"] > 0, "plus", "minus")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rmsprop.fit(TABLE, pd.Series(SIGN, name="sign"), epochs=3, hidden=(8,)).save("run")
    TABLE.to_csv("table.csv", index=False)
    return tmp_path


def test_a_line_a_row(folder, capsys):
    assert main(["predict", "run", "table.csv", "-o", "out.csv"]) == 0
    assert capsys.readouterr() == ("", "60 predictions in out.csv\n")
    out = pd.read_csv("out.csv")
    model = rmsprop.Model.load("run")
    assert out["prediction"].tolist() == model.predict(TABLE).tolist()
    np.testing.assert_allclose(out["probability"], model.predict_proba(TABLE).max(1), rtol=1e-12)


def test_regression_to_standard_output_from_parquet(folder, capsys):
    model = rmsprop.fit(TABLE, 1e5 * TABLE["a"].to_numpy(), epochs=3, hidden=(8,))
    model.save("regression")
    TABLE.to_parquet("table.parquet")
    assert main(["predict", "regression", "table.parquet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prediction"
    np.testing.assert_allclose([float(line) for line in lines[1:]], model.predict(TABLE), rtol=1e-12)


def test_where_the_target_is_known_the_score_is_told(folder, capsys):
    TABLE.assign(sign=SIGN).to_csv("known.csv", index=False)
    assert main(["predict", "run", "known.csv", "-o", "out.csv"]) == 0
    score = np.mean(pd.read_csv("out.csv")["prediction"] == SIGN)
    assert f"accuracy {score:.4f} on these rows" in capsys.readouterr().err


def test_the_output_is_not_overwritten_unless_forced(folder, capsys):
    (folder / "out.csv").write_text("mine")
    assert main(["predict", "run", "table.csv", "-o", "out.csv"]) == 2
    assert "out.csv: exists already; expected a new file, or --force" in capsys.readouterr().err
    assert (folder / "out.csv").read_text() == "mine"
    assert main(["predict", "run", "table.csv", "-o", "out.csv", "--force"]) == 0
    assert (folder / "out.csv").read_text().startswith("prediction,probability\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere table.csv", "nowhere: no such run folder"),
        ("run none.csv", "none.csv: no such file"),
        ("run other.csv", "columns: 'city' is missing"),
        ("run text.csv", "column 'a': row 1 holds x: expected a number"),
        ("run table.csv -o no/such/out.csv", "No such file"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, capsys, arguments, message):
    TABLE[["a"]].to_csv("other.csv", index=False)
    TABLE.assign(a="x").to_csv("text.csv", index=False)
    before = sorted(folder.iterdir())
    assert main(["predict", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert sorted(folder.iterdir()) == before


def test_a_damaged_run_is_named(folder, capsys):
    path = folder / "run" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert main(["predict", "run", "table.csv"]) == 2
    assert "model.safetensors: damaged: tensor" in capsys.readouterr().err
