"""A disk that is full is no failure of a run: nothing is left half-written, and the same call goes on from there."""

import json
import os
import subprocess
from contextlib import contextmanager

import pytest
import torch

from recallbench.disk import DiskTrouble
from recallbench.record import RunDirectory, write_study

SIZE = 1024
"""KiB of the disk."""


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        assert "RECALLBENCH_CI" not in os.environ, done.stderr
        pytest.skip(f"a disk can be mounted by root alone: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def filled(disk, free):
    """All but so many KiB of what is left taken."""
    ballast = disk / "ballast"
    left = os.statvfs(disk)
    with ballast.open("wb") as file:
        file.write(bytes(max(0, left.f_bavail * left.f_bsize - free * 1024)))
    try:
        yield
    finally:
        ballast.unlink()


def check_files(folder):
    """Whatever bears its final name is whole, and nothing else is there."""
    for path in folder.rglob("*.json*"):
        for line in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(line)
    for path in folder.rglob("*.pt"):
        torch.load(path, weights_only=True)
    assert not list(folder.rglob("*.partial"))


def free_amounts(disk, whole):
    """KiB from nothing to all that the runs need, in the disk's own pages."""
    needed = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
    page = os.statvfs(disk).f_bsize // 1024
    return range(0, needed + 16 * page, page)


def test_however_little_is_free_the_same_call_goes_on_once_there_is_more(
    members, carry_out, outcome, disk, tmp_path, capfd
):
    """With a checkpoint after every step: some cannot be written, and training goes on; a record must be."""
    runs = members([(0.01, 0), (0.02, 1)])
    expected = [outcome(record) for record in carry_out(tmp_path / "whole", runs, checkpoint_seconds=0)]
    stopped = went_on = 0
    for free in free_amounts(disk, tmp_path / "whole"):
        folder = disk / f"runs{free}"
        said = ""
        with filled(disk, free):
            try:
                carry_out(folder, runs, checkpoint_seconds=0)
            except DiskTrouble as error:
                said = str(error)
                stopped += 1
        told = capfd.readouterr().err
        went_on += not said and "training goes on" in told
        assert not said or said.endswith("No space left on device; free space and run the same command again")
        check_files(folder)
        assert not any(record["status"] == "failed" for record in map(read_json, folder.glob("*/result.json")))
        assert [outcome(record) for record in carry_out(folder, runs)] == expected
        check_files(folder)
        subprocess.run(["rm", "-rf", str(folder)], check=True)
    assert stopped > 3
    assert went_on > 0


def read_json(path):
    return json.loads(path.read_text())


def test_a_manifest_stays_whole_on_a_full_disk(disk):
    write_study(disk, "mine", ["first"])
    with filled(disk, 0), pytest.raises(DiskTrouble, match=r"mine.*No space left on device"):
        write_study(disk, "mine", [f"run{i}" for i in range(1000)])
    check_files(disk)
    assert read_json(disk / "studies" / "mine.json")["identities"] == ["first"]
    write_study(disk, "mine", ["second"])
    assert read_json(disk / "studies" / "mine.json")["identities"] == ["first", "second"]
    assert not RunDirectory(disk, "first").has_record()
