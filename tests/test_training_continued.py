"""A run of training that is cut or killed and continued ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from regressed import LONG, RECIPE, Net, Watch, assert_same, net, regression, uncut
from regressed import checkpoint_always as checkpoint_always
from torch import Tensor

from edgedistill.specs import Silent
from edgedistill.store import CHECKPOINT
from edgedistill.training import train


@pytest.mark.usefixtures("checkpoint_always")
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("steps", [40, 250])
@pytest.mark.parametrize("cut", [1, 17, 39])
def test_a_run_that_is_cut_and_continued_ends_with_the_same_bits(
    tmp_path: Path, cut: int, steps: int, ema_decay: float
) -> None:
    recipe = replace(RECIPE, steps=steps, ema_decay=ema_decay)
    for name in ("cut", "uncut"):
        (tmp_path / name).mkdir()
    wanted, curve = uncut(tmp_path / "uncut", recipe)

    stopped = net()
    with pytest.raises(KeyboardInterrupt):
        train(stopped, regression(stopped, fail_at=cut), recipe, tmp_path / "cut", Silent())
    continued, watch, called = net(), Watch(), []
    objective = regression(continued)

    def counted(step: int) -> Tensor:
        called.append(step)
        return objective(step)

    assert train(continued, counted, recipe, tmp_path / "cut", watch) == curve
    assert_same(continued, wanted)
    last_point = cut - cut % max(1, steps // 100)
    assert called == list(range(last_point, steps))
    assert watch.steps == steps


@pytest.mark.usefixtures("checkpoint_always")
def test_a_run_may_be_cut_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "uncut").mkdir()
    wanted, curve = uncut(tmp_path / "uncut")
    for cut in (3, 4, 20, 33):
        model = net()
        with pytest.raises(KeyboardInterrupt):
            train(model, regression(model, fail_at=cut), RECIPE, tmp_path, Silent())
    model = net()
    assert train(model, regression(model), RECIPE, tmp_path, Silent()) == curve
    assert_same(model, wanted)


def test_without_a_checkpoint_a_run_starts_from_the_beginning(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(KeyboardInterrupt):  # far less than 20 s, so nothing was saved
        train(model, regression(model, fail_at=20), RECIPE, tmp_path, Silent())
    assert not (tmp_path / CHECKPOINT).exists()
    wanted, curve = uncut(tmp_path)
    again, same = uncut(tmp_path)
    assert curve == same
    assert_same(again, wanted)


def cut_at_ten(folder: Path) -> tuple[Net, list[tuple[int, float]], Path]:
    """What a run that nothing ends comes to, and the file in `folder` that one left which was cut at step 10."""
    (folder / "uncut").mkdir()
    wanted, curve = uncut(folder / "uncut")
    model = net()
    with pytest.raises(KeyboardInterrupt):
        train(model, regression(model, fail_at=10), RECIPE, folder, Silent())
    return wanted, curve, folder / CHECKPOINT / "state.safetensors"


@pytest.mark.usefixtures("checkpoint_always")
def test_a_draft_that_a_kill_left_half_written_is_ignored(tmp_path: Path) -> None:
    wanted, curve, state = cut_at_ten(tmp_path)
    (tmp_path / CHECKPOINT / "draft.safetensors").write_bytes(state.read_bytes()[:100])
    model = net()
    assert train(model, regression(model), RECIPE, tmp_path, Silent()) == curve
    assert_same(model, wanted)


@pytest.mark.usefixtures("checkpoint_always")
@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_checkpoint_cut_short_by_a_power_loss_means_starting_again(tmp_path: Path, kept: int) -> None:
    wanted, curve, state = cut_at_ten(tmp_path)
    state.write_bytes(state.read_bytes()[:kept])
    model = net()
    assert train(model, regression(model), RECIPE, tmp_path, Silent()) == curve
    assert_same(model, wanted)


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import regressed as here
from edgedistill import training
training.CHECKPOINT_EVERY_S = 0
model = here.net()
here.train(model, here.regression(model), here.LONG, Path(sys.argv[1]), here.Silent())
"""


def test_a_killed_process_that_is_continued_ends_with_the_same_bits(tmp_path: Path) -> None:
    state = tmp_path / CHECKPOINT / "state.safetensors"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), str(Path(__file__).parent)])
    deadline = time.monotonic() + 60
    while not state.is_file() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.005)
    time.sleep(0.15)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL, "it was to be killed in the middle"
    from safetensors import safe_open

    with safe_open(state, "pt") as file:
        assert 0 < int(file.metadata()["step"]) < LONG.steps
    model = net()
    curve = train(model, regression(model), LONG, tmp_path, Silent())
    (tmp_path / "uncut").mkdir()
    wanted, expected = uncut(tmp_path / "uncut", LONG)
    assert curve == expected
    assert_same(model, wanted)
