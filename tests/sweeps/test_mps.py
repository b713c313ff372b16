"""Workers that share a GPU reach a service of their own, for as long as they work and no longer."""

import os
import stat
from pathlib import Path

import pytest

from recallbench.interrupt import Stopped
from sweeps.mps import CONTROL, side_by_side

ALONE = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
SHARED = ALONE * 2


@pytest.fixture
def control(monkeypatch, tmp_path):
    """A stand-in for the control program, which notes its calls: where, with which arguments and commands."""
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program, notes = tmp_path / CONTROL, tmp_path / "notes"
    notes.touch()

    def behaves(status: int) -> Path:
        line = 'echo "$CUDA_MPS_PIPE_DIRECTORY [$CUDA_VISIBLE_DEVICES] $* $(cat)"'
        program.write_text(f"#!/bin/sh\n{line} >> {notes}\nexit {status}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return notes

    return behaves


def test_it_lasts_as_long_as_the_workers(control):
    notes = control(0)
    reached = []

    def work():
        with side_by_side(SHARED) as places:
            reached.extend(places)
            assert notes.read_text() == f"{places[0]['CUDA_MPS_PIPE_DIRECTORY']} [] -d \n"
            raise Stopped

    with pytest.raises(Stopped):
        work()
    (folder,) = {place["CUDA_MPS_PIPE_DIRECTORY"] for place in reached}
    assert [place["CUDA_VISIBLE_DEVICES"] for place in reached] == ["0", "1", "0", "1"]
    assert notes.read_text().splitlines()[1].split()[:3] == [folder, "[]", "quit"]
    assert not Path(folder).exists()


@pytest.mark.parametrize("places", [ALONE, [{}, {}], []], ids=["a GPU each", "no GPU", "nobody"])
def test_nothing_is_started_for_workers_that_share_no_gpu(control, places):
    notes = control(0)
    with side_by_side(places) as found:
        assert found == places
    assert not notes.read_text()


def test_a_service_that_is_there_already_is_left_to_its_owner(control, monkeypatch):
    notes = control(0)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/somewhere")
    with side_by_side(SHARED) as found:
        assert found == SHARED
    assert not notes.read_text()


def test_workers_take_turns_where_it_does_not_start(control, monkeypatch):
    control(1)
    with side_by_side(SHARED) as found:
        assert found == SHARED
    monkeypatch.setenv("PATH", "/nowhere")
    with side_by_side(SHARED) as found:
        assert found == SHARED
