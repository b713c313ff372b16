"""Many workers on one study: each run is done once, whoever is killed, suspended, stopped or runs out of time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import recallbench
from models.settings import SettingErrors
from recallbench import claim
from recallbench.checkpoint import WritableDirectory
from recallbench.claim import holder, take
from recallbench.execution import ExecutionConfig
from recallbench.interrupt import StopRequest
from recallbench.run import runs_of
from sweeps.local import check_local
from sweeps.pool import places
from sweeps.worker import carry_out

ROOT = Path(recallbench.__file__).parents[1]
LONG = 512
"""Examples an epoch, for a run that takes long enough to be interfered with."""


def jobs(runs, widths, seeds=(0, 1), examples=32, epochs=2, **execution):
    """A job for each width, with a member for each seed."""
    return [
        {
            "task": {
                "name": "mqar",
                "vocab_size": 16,
                "sequence_length": 8,
                "num_kv_pairs": 2,
                "num_examples": examples,
                "num_test_examples": 16,
            },
            "model": {"d_model": width, "layers": ["short_conv", "mixer"]},
            "mixer": {"name": "attention"},
            "train": {"learning_rate": 0.01, "batch_size": 8, "epochs": epochs, "stop_at_accuracy": None},
            "seed": 0,
            "members": [{"learning_rate": 0.01, "seed": seed} for seed in seeds],
            "runs": str(runs),
            "device": "cpu",
            **execution,
        }
        for width in widths
    ]


def identities(some):
    return [run.identity for job in some for run in runs_of(job)]


def results(runs):
    """What each record and log say of the result; a file that is not whole does not parse."""
    found = {}
    for path in Path(runs).glob("*/result.json"):
        record = json.loads(path.read_text())
        log = [json.loads(line) for line in path.with_name("log.jsonl").read_text().splitlines()]
        for entry in log:
            del entry["seconds"]
        found[path.parent.name] = {**{key: record[key] for key in ("status", "metrics", "slices", "state")}, "log": log}
    return found


NOTING = """
import json, os, sys, torch
from recallbench import claim, execute
from recallbench.interrupt import StopRequest
from sweeps import worker

claim.HEARTBEAT, claim.STALE = 0.2, 2.0
torch.set_num_threads(1)

class Training(execute.Training):
    def __init__(self, runs, *others):
        with open(sys.argv[1], "a") as file:
            file.writelines(f"{os.getpid()} {run.identity}\\n" for run in runs)
        super().__init__(runs, *others)

execute.Training = Training
worker.carry_out(json.loads(sys.stdin.readline()), StopRequest())
"""
"""A worker that notes which trainings it begins."""


@pytest.fixture
def launch(tmp_path):
    """Start a worker that notes what it begins; all are gone at the end."""
    started = []

    def launched(some):
        command = [sys.executable, "-c", NOTING, str(tmp_path / "begun")]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True)
        process.stdin.write(json.dumps(some) + "\n")
        process.stdin.flush()
        started.append(process)
        return process

    yield launched
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()


def begun(tmp_path):
    path = tmp_path / "begun"
    return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(true):
    for _ in range(6000):
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_several_launchers_share_a_study_and_double_nothing(launch, tmp_path):
    study = jobs(tmp_path / "runs", range(2, 26, 2))
    launchers = [launch(order) for order in (study, study, study[::-1])]
    assert [process.wait() for process in launchers] == [0, 0, 0]
    assert sorted(begun(tmp_path)) == sorted(identities(study))
    found = results(tmp_path / "runs")
    assert set(found) == set(identities(study))
    assert {result["status"] for result in found.values()} == {"completed"}
    assert not list((tmp_path / "runs").glob("*/claim.*"))


def checkpointed(runs, identity):
    return (Path(runs) / identity / "checkpoint.pt").exists()


@pytest.mark.usefixtures("one_thread")
def test_a_suspended_worker_is_followed_and_writes_no_more_when_it_is_back(launch, monkeypatch, tmp_path):
    monkeypatch.setattr(claim, "STALE", 2.0)  # as for the workers
    study = jobs(tmp_path / "runs", [4], examples=LONG, epochs=4, checkpoint_seconds=0.2)
    first, second = identities(study)
    suspended = launch(study)
    wait_until(lambda: checkpointed(tmp_path / "runs", second))
    suspended.send_signal(signal.SIGSTOP)
    assert not results(tmp_path / "runs")
    wait_until(lambda: not any(holder(tmp_path / "runs" / run) for run in (first, second)))
    assert launch(study).wait() == 0
    assert begun(tmp_path) == 2 * [first, second]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    suspended.send_signal(signal.SIGCONT)
    assert suspended.wait() == 0
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert left == {path: time for path, time in files.items() if path.is_file()}
    whole = jobs(tmp_path / "whole", [4], examples=LONG, epochs=4)
    carry_out(whole, StopRequest())
    assert results(tmp_path / "runs") == results(tmp_path / "whole")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("alive", [True, False])
def test_of_a_process_on_another_machine_the_next_heartbeat_is_awaited(alive, monkeypatch, tmp_path):
    monkeypatch.setattr(claim, "STALE", 2.0)
    study = jobs(tmp_path, [4, 8])
    theirs = take(tmp_path / identities(study)[0])
    theirs.path.write_text(json.dumps({**json.loads(theirs.path.read_text()), "place": "another machine"}))
    theirs._beat_no_more()  # this process's heartbeat, every 10 s, may fall into the 2 that are waited for
    over = threading.Event()

    def beat():
        while not over.wait(0.1):
            theirs.path.touch()

    thread = threading.Thread(target=beat)
    if alive:
        thread.start()
    carry_out(study, StopRequest())
    over.set()
    if alive:
        thread.join()
        assert set(results(tmp_path)) == set(identities(study)[1:])
    else:
        assert set(results(tmp_path)) == set(identities(study))
    theirs.release()


STUDY = [
    "-m",
    "task.vocab_size=16",
    "task.sequence_length=8",
    "task.num_kv_pairs=2",
    "task.num_examples=128",
    "task.num_test_examples=16",
    "mixer=slow",
    "model.d_model=4,8,12",
    "train.batch_size=8",
    "train.epochs=4",
    "train.stop_at_accuracy=null",
    "device=cpu",
    "checkpoint_seconds=0.2",
    "hydra.launcher.workers=2",
]
"""Three runs of some seconds each, for two workers."""

SLOW = """
import time
from models.mixers.attention import Attention

class Slow(Attention):
    def forward(self, x):
        time.sleep(0.03)
        return super().forward(x)
"""
"""Takes long and leaves the processor to others meanwhile."""

DEADLY = """
import os, signal
from models.mixers.attention import Attention

class Deadly(Attention):
    def forward(self, x):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start the study in a copy of the project that has two more mixers."""
    checkout = tmp_path_factory.mktemp("checkout")
    for room in ("kernels", "models", "recallbench", "sweeps", "hydra_plugins", "conf"):
        shutil.copytree(ROOT / room, checkout / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in (("slow", SLOW), ("deadly", DEADLY)):
        (checkout / "models" / "mixers" / f"{name}.py").write_text(code)
        (checkout / "conf" / "mixer" / f"{name}.yaml").write_text(f"name: {name}\n")

    def started(runs, *overrides):
        return subprocess.Popen(
            [sys.executable, "-m", "recallbench", *STUDY, f"runs={runs}", *overrides],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return started


def finish(process):
    said, errors = process.communicate(timeout=300)
    return process.returncode, said.splitlines()[-1], errors


def working(runs):
    """The process at each run that has reached a checkpoint and has no record, identity -> process id."""
    by = {path.parent.name: holder(path.parent) for path in Path(runs).glob("*/checkpoint.pt")}
    return {identity: found.pid for identity, found in by.items() if found}


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """The study's results."""
    runs = tmp_path_factory.mktemp("undisturbed")
    assert finish(start(runs)) == (0, "sweep: 3 runs done", "")
    return results(runs)


def test_a_killed_worker_is_replaced(start, undisturbed, tmp_path):
    study = start(tmp_path)
    (identity, pid), *_ = wait_until(lambda: working(tmp_path)).items()
    os.kill(pid, signal.SIGKILL)
    assert finish(study) == (0, "sweep: 3 runs done", "")
    assert results(tmp_path) == undisturbed
    assert identity in undisturbed


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_workers_leave_once_the_process_that_started_them_is_killed(start, undisturbed, tmp_path):
    study = start(tmp_path)
    workers = wait_until(lambda: len(found := set(working(tmp_path).values())) == 2 and found)
    study.kill()
    study.communicate()
    wait_until(lambda: all(map(gone, workers)))
    assert not working(tmp_path)
    released = [path for path in tmp_path.glob("*/claim.*") if path.stat().st_mtime == 0]
    assert len(released) == 2 == len(list(tmp_path.glob("*/checkpoint.pt")))
    assert finish(start(tmp_path)) == (0, "sweep: 3 runs done", "")
    assert results(tmp_path) == undisturbed


def test_a_signal_stops_all_workers_and_the_same_command_goes_on(start, undisturbed, tmp_path):
    study = start(tmp_path)
    wait_until(lambda: working(tmp_path))
    study.send_signal(signal.SIGINT)
    status, last, errors = finish(study)
    assert (status, errors) == (130, "stopped, everything saved; the same command goes on from here\n")
    assert last.startswith("sweep: ")
    assert last.endswith(" left")
    assert not working(tmp_path)
    assert finish(start(tmp_path)) == (0, "sweep: 3 runs done", "")
    assert results(tmp_path) == undisturbed


def test_a_study_leaves_within_its_time(start, tmp_path):
    """Runs that would take an hour: it is by itself that the command ends. A slow machine has begun none in 25 s."""
    for budget in ("25s", "100s"):
        status, last, errors = finish(start(tmp_path, "train.epochs=100000", f"sweep.time_budget={budget}"))
        assert (status, errors) == (0, "")
        assert last == "sweep: 0 runs done, 3 left, the time budget is over, the same command goes on from here"
        saved = list(tmp_path.glob("*/checkpoint.pt"))
        if len(saved) == 2:
            break
    assert len(saved) == 2
    assert all(torch.load(path, weights_only=True)["step"] > 0 for path in saved)
    assert not working(tmp_path)


@pytest.mark.usefixtures("one_thread")
def test_a_study_that_runs_out_of_time_again_and_again_ends_the_same(tmp_path):
    carry_out(jobs(tmp_path / "whole", [4, 8], examples=LONG), StopRequest())
    study, times = jobs(tmp_path / "runs", [4, 8], examples=LONG), 0
    while len(results(tmp_path / "runs")) < 4:
        times += 1
        carry_out(study, StopRequest(time.monotonic() + 0.05 * times))
    assert times > 1
    assert results(tmp_path / "runs") == results(tmp_path / "whole")


def test_a_run_that_kills_its_process_fails_at_last_and_the_others_are_done(start, tmp_path):
    study = start(tmp_path, "mixer=deadly,attention", "model.d_model=4", "task.num_examples=64")
    assert finish(study) == (0, "sweep: 2 runs done (1 failed)", "")
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    ended = {record["family"]: (record["status"], record["reason"]) for record in records}
    reason = "its process died 3 times without reaching a checkpoint (killed, or out of host memory?)"
    assert ended == {"attention": ("completed", None), "deadly": ("failed", reason)}


@pytest.mark.usefixtures("one_thread")
def test_deaths_before_a_checkpoint_do_not_count(tmp_path):
    (job,) = jobs(tmp_path, [4], seeds=[0])
    (run,) = runs_of(job)
    for _ in range(2):
        lost = take(tmp_path / run.identity)
        lost.path.write_text(lost.path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305'))  # no process
    directory = WritableDirectory(tmp_path, run)
    assert directory.take().deaths == 2
    directory.save_checkpoint({"step": 0})
    directory.checkpoint_path.unlink()
    lost = directory.claim
    lost.path.write_text(lost.path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305'))
    carry_out([job], StopRequest())
    assert results(tmp_path)[run.identity]["status"] == "completed"


@pytest.mark.parametrize(("workers", "threads"), [(1, None), (2, None), (3, None), (None, None), (2, "5")])
def test_workers_share_the_cores(workers, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    cores = len(os.sched_getaffinity(0))
    found = places("cpu", workers)
    assert len(found) == (workers or cores)
    assert {place["OMP_NUM_THREADS"] for place in found} == {threads or str(max(1, cores // len(found)))}
    assert not any("CUDA_VISIBLE_DEVICES" in place for place in found)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"workers": 0}, "hydra.launcher.workers is 0: it should be greater than 0"),
        ({"workers_per_gpu": "two"}, "hydra.launcher.workers_per_gpu is 'two': it should be a valid integer"),
        ({"worker": 2}, "hydra.launcher.worker is 2: there is no such setting; did you mean workers?"),
    ],
)
def test_a_mistake_in_the_launchers_settings_is_said_in_a_sentence(settings, sentence):
    with pytest.raises(SettingErrors) as raised:
        check_local(settings, [], ExecutionConfig(device="cpu"))
    assert str(raised.value) == sentence
