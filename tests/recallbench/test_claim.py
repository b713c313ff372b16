"""A run is one process's at a time: of those that race for it, and of those that come after one that is gone."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recallbench
from recallbench import claim
from recallbench.claim import holder, take

ROOT = Path(recallbench.__file__).parents[1]

HOLDER = """
import sys, threading
from pathlib import Path
from recallbench import claim

claim.HEARTBEAT, claim.STALE = 0.1, 1.5
names = sys.stdin.readline().split()
held = [c for name in names if (c := claim.take(Path(name)))]
print(*(c.directory for c in held), flush=True)
for line in sys.stdin:
    if line == "release\\n":
        for c in held:
            c.release()
    print(*(c.held() for c in held), flush=True)
"""
"""Takes what it can of the directories that it is given, then tells, as often as it is asked, which it still holds."""


@contextmanager
def process():
    command = [sys.executable, "-c", HOLDER]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def tell(child, *words):
    child.stdin.write(" ".join(map(str, words)) + "\n")
    child.stdin.flush()


def answer(child):
    return child.stdout.readline().split()


@pytest.fixture
def impatient(monkeypatch):
    """As the processes above."""
    monkeypatch.setattr(claim, "HEARTBEAT", 0.1)
    monkeypatch.setattr(claim, "STALE", 1.5)


def wait_until(true):
    for _ in range(3000):
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


def test_of_many_that_race_each_claim_is_one_process_s(tmp_path):
    directories = [tmp_path / f"run{i:03}" for i in range(300)]
    with process() as a, process() as b, process() as c, process() as d:
        for each in (a, b, c, d):
            tell(each, *directories)
        taken = [answer(each) for each in (a, b, c, d)]
        for each, own in zip((a, b, c, d), taken, strict=True):
            tell(each, "and now?")
            assert answer(each) == ["True"] * len(own)
            assert {holder(Path(path)).pid for path in own} <= {each.pid}
    assert sorted(path for own in taken for path in own) == sorted(map(str, directories))
    assert {path.name for directory in directories for path in directory.iterdir()} == {"claim.0"}


def test_who_is_killed_is_followed_at_once(tmp_path):
    with process() as child:
        tell(child, tmp_path / "run")
        answer(child)
        found = holder(tmp_path / "run")
        assert (found.pid, found.here) == (child.pid, True)
        assert take(tmp_path / "run") is None
        (tmp_path / "run" / "checkpoint.pt.elsewhere.partial").touch()
        child.send_signal(signal.SIGKILL)
        wait_until(lambda: holder(tmp_path / "run") is None)  # dead even before its parent has asked how it ended
        ours = take(tmp_path / "run")
    assert ours.deaths == 1
    assert ours.held()
    assert not list(tmp_path.rglob("*.partial"))
    ours.forget_earlier()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["claim.1"]
    ours.finish()
    assert list((tmp_path / "run").iterdir()) == []


def test_who_lets_go_is_followed_at_once_and_has_not_died(tmp_path):
    with process() as child:
        tell(child, tmp_path / "run")
        answer(child)
        tell(child, "release")
        answer(child)
        ours = take(tmp_path / "run")
        assert ours.deaths == 0
        ours.release()
        assert holder(tmp_path / "run") is None


@pytest.mark.usefixtures("impatient")
def test_who_is_silent_for_too_long_has_lost_it(tmp_path):
    with process() as child:
        tell(child, tmp_path / "run")
        answer(child)
        beats = set()
        while len(beats) < 20:  # longer than it may be silent
            beats.add(holder(tmp_path / "run").heartbeat)
            assert take(tmp_path / "run") is None
        child.send_signal(signal.SIGSTOP)
        ours = wait_until(lambda: take(tmp_path / "run"))
        child.send_signal(signal.SIGCONT)
        tell(child, "and now?")
        assert answer(child) == ["False"]
        tell(child, "release")  # of what is another's by now
        answer(child)
        assert ours.held()
        assert holder(tmp_path / "run").pid == os.getpid()
        ours.release()


@settings(max_examples=50, derandomize=True)
@given(age=st.floats(0, 3 * claim.STALE).filter(lambda age: abs(age - claim.STALE) > 5), released=st.booleans())
def test_of_a_process_elsewhere_the_heartbeat_is_all_that_counts(age, released, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    theirs = take(directory)
    content = {**json.loads(theirs.path.read_text()), "place": "another machine", "pid": 1, "host": "far"}
    theirs.release()
    theirs.path.write_text(json.dumps(content))
    then = 0 if released else time.time() - age
    os.utime(theirs.path, (then, then))
    free = released or age > claim.STALE
    found, ours = holder(directory), take(directory)
    assert (found is None) == (ours is not None) == free
    if free:
        assert ours.deaths == (not released)
        ours.finish()
    else:
        assert (found.host, found.here, found.heartbeat) == ("far", False, pytest.approx(then))


def test_a_claim_that_was_lost_half_written_goes_by_its_heartbeat(tmp_path):
    (tmp_path / "claim.4").touch()
    assert take(tmp_path) is None
    assert holder(tmp_path).host == "an unknown host"
    os.utime(tmp_path / "claim.4", (1, 1))
    ours = take(tmp_path)
    assert ours.path.name == "claim.5"
    ours.finish()


def test_the_job_of_a_cluster_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    alone = take(tmp_path / "alone")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "120")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    of_array = take(tmp_path / "array")
    assert (holder(tmp_path / "alone").job, holder(tmp_path / "alone").task) == ("123", None)
    assert (holder(tmp_path / "array").job, holder(tmp_path / "array").task) == ("120", "3")
    assert "(SLURM job 120_3)" in str(holder(tmp_path / "array"))
    alone.finish()
    of_array.finish()


def test_claims_need_no_torch():
    program = "import sys, recallbench.claim, recallbench.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
