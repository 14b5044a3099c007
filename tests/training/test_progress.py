import io
import sys

from rmsprop.training.progress import shown
from tests.training.test_loop import fresh

ROW = {"train_loss": 0.5, "test_loss": 0.25, "test_score": 0.875}


def run(epochs, batches, wanted):
    state, _ = fresh()
    with shown(epochs, batches, "accuracy", wanted) as show:
        for epoch in range(1, epochs + 1):
            for state.batch in range(1, batches + 1):
                show(state)
            state.history.append({"epoch": epoch, **ROW})
            state.batch = 0
            show(state)


def test_plain_lines_are_few(capsys):
    run(1000, 3, wanted=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "epoch 1/1000  loss 0.5  test loss 0.25  test accuracy 0.8750"
    assert lines[-1].startswith("epoch 1000/1000")
    assert len(lines) == 11


def test_quiet_is_quiet(capsys):
    run(20, 3, wanted=False)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    run(20, 3, wanted=True)
    text = sys.stderr.getvalue()
    assert "20/20" in text
    assert "━" in text
    assert "test accuracy 0.8750" in text
