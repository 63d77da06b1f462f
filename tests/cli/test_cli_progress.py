"""Progress as lines, and the live line."""

from edgedistill.cli import output
from edgedistill.cli.progress import Watch, clock


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_plain_line_for_each_stage(capsys):
    output.choose()
    time = Clock()
    with Watch(clock=time) as watch:
        watch.begin("distil:warm")
        time.now += 1
        watch.begin("warm", 10, "step")  # the stage's own code: the same stage, with more known
        watch.advance(10, loss=0.5)
        time.now += 2
        watch.end("loss 0.5")
        watch.begin("data")
        watch.end("already done")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "done   distil:warm            3.0 s  loss 0.5",
        "cached data                   0.0 s  already done",
    ]
    assert [(line.stage, line.cached) for line in watch.lines] == [("distil:warm", False), ("data", True)]


def test_a_stage_that_never_ended_is_closed_by_the_next(capsys):
    output.choose()
    with Watch(clock=Clock()) as watch:
        watch.begin("teacher")
        watch.begin("record")
        watch.end("ok")
    assert [line.stage for line in watch.lines] == ["teacher", "record"]


def test_the_stage_that_failed_is_named(capsys):
    output.choose()
    try:
        with Watch(clock=Clock()) as watch:
            watch.begin("export:tflite")
            raise ValueError
    except ValueError:
        pass
    assert capsys.readouterr().err.startswith("failed export:tflite")


def test_quiet_says_nothing(capsys):
    output.choose(quiet=True)
    with Watch() as watch:
        watch.begin("data")
        watch.end("rows")
    assert capsys.readouterr() == ("", "")
    output.choose()


def test_live_line_has_bar_time_left_loss_and_rate():
    time = Clock()
    watch = Watch(clock=time)
    assert watch.live_line().plain == ""
    watch.begin("warm", 200, "step")
    watch.advance(50, loss=0.25)
    time.now += 1
    assert watch.live_line().plain == ""  # a short stage needs no live line
    time.now += 4
    line = watch.live_line().plain
    assert "50/200 step" in line
    assert "0:15 left" in line
    assert "loss 0.25" in line
    assert "10/s" in line
    assert line.count("━") == 6


def test_live_line_without_a_total_or_beyond_it():
    time = Clock()
    watch = Watch(clock=time)
    watch.begin("freeze")
    time.now += 3
    assert watch.live_line().plain.split() == ["freeze", "3.0", "s"]
    watch.begin("more", 2)
    watch.advance(5)
    time.now += 3
    assert "left" not in watch.live_line().plain


def test_clock():
    assert [clock(seconds) for seconds in (7, 750, 3723)] == ["0:07", "12:30", "1:02:03"]


def test_texts_cannot_drive_the_terminal():
    assert output.clean("a\x1b[2Jb\u202ec\x9bd\n") == "a\ufffd[2Jb\ufffdc\ufffdd\n"
    assert output.styled("[CLS] [red]x").plain == "[CLS] [red]x"
