import rmsprop
from rmsprop.comparing.candidates import CANDIDATES
from rmsprop.comparing.progress import Show, shown
from rmsprop.comparing.sweep import sweep
from tests.comparing.small import small
from tests.comparing.test_compare import QUICK, line


def test_time_left_is_weighted_by_measured_time():
    show, result = Show(4, None, None), sweep(small(steps=2), CANDIDATES["sgd"], [0], False, lrs=[0.1])
    show.known("a", 10.0)
    show.expect(["a", "b", "b"], {"a": 99.0, "b": 2.0})
    assert show.remaining() == 10 + 2 * 2
    show.start("a", "sgd")
    show.tell(0.75)
    assert show.remaining() == 2.5 + 2 * 2
    result.problem, result.seconds = "a", 20.0
    show.finish(result)
    show.start("b", "sgd")
    assert show.remaining() == 2 * 2
    result.problem, result.seconds = "b", 7.0
    show.finish(result)
    assert show.remaining() == 7
    assert show.seconds("a") == 15


def test_progress_is_plain_lines_or_a_bar_or_nothing(monkeypatch, capsys):
    rmsprop.compare(line, **QUICK)
    assert capsys.readouterr() == ("", "")
    rmsprop.compare(line, **QUICK, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    one, two = err.splitlines()
    assert one.startswith("1/2  line rmsprop: loss ")
    assert one.endswith(" s left")
    assert two.startswith("2/2  line sgd: loss ")
    assert " at lr 0.03, " in two
    assert "left" not in two
    monkeypatch.setenv("FORCE_COLOR", "1")
    rmsprop.compare(line, **QUICK, progress=True)
    err = capsys.readouterr().err
    assert "\x1b[" in err
    assert "1/2  line rmsprop: loss " in err


def test_long_trainings_tell_every_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("rmsprop.comparing.progress.monotonic", lambda: now[0])
    with shown(2, wanted=True) as show:
        show.expect(["a", "a"], {"a": 7200.0})
        show.start("a", "sgd")
        show.tell(0.25)
        now[0] += 60
        show.tell(0.5)
        show.tell(0.55)
    assert capsys.readouterr().err == "0/2  a sgd: 50%; about 3 h 00 min left\n"
