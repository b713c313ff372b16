"""Whatever ends a task, its node or the process that submitted it: every run gets its record, once and whole."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest

POINTS = ("task.seed=1,2,3,4", "train.epochs=12")


@pytest.fixture(scope="module")
def undisturbed(new_study, tmp_path_factory):
    """The results of the same runs on this machine, with nothing in their way."""
    study = new_study(tmp_path_factory.mktemp("undisturbed"))
    study.launch(*POINTS, launcher="local")
    return study.results()


@pytest.fixture(scope="module")
def number_of(ask):
    """SLURM's own number of a task, which is in the environment of its processes."""
    return lambda task: dict(line.split() for line in ask("squeue", "-h", "--array", "--format=%i %A").splitlines())[
        task
    ]


def processes_of(job: str) -> Iterable[int]:
    """The processes of a job."""
    return _processes("environ", lambda environment: f"SLURM_JOB_ID={job}" in environment)


def keepers_of(job: str) -> Iterable[int]:
    """The processes of SLURM that look after a job."""
    return _processes("cmdline", lambda command: command[0].startswith(f"slurmstepd: [{job}."))


def _processes(file: str, fits: Callable[[list[str]], bool]) -> Iterable[int]:
    for path in Path("/proc").glob(f"[0-9]*/{file}"):
        with suppress(OSError):
            if fits(path.read_text(errors="replace").split("\0")):
                yield int(path.parent.name)


def kill(processes: Iterable[int]) -> None:
    for process in list(processes):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def give_way(processes: Iterable[int]) -> None:
    """What only waits for its time to be up leaves the cores to others."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process, 10)


def in_the_middle(directory: Path) -> bool:
    return (directory / "checkpoint.pt").exists() and (directory / "log.jsonl").exists()


def log_of(study, task: str) -> str:
    (path,) = study.runs.glob(f"launches/small/*/{task}_0_log.out")
    return path.read_text()


def test_tasks_end_in_every_way_and_nothing_is_lost(study, undisturbed, ask, wait_until, number_of, numbers):
    """SIGUSR2 as of the time limit, requeueing, scancel, a kill of all processes; and one that meets its real limit."""
    # SLURM looks at the limits every 30 s, and warns at the last look before it is due: 45 to 75 s after the start.
    study.launch("task.seed=0", "train.epochs=9000", "hydra.launcher.time=2", "hydra.launcher.signal_delay=45")
    study.launch(*POINTS)
    tasks = study.tasks()
    ends = {
        0: lambda task: give_way(processes_of(number_of(task))),
        1: lambda task: ask("scancel", "--signal=USR2", task),
        2: lambda task: ask("scontrol", "requeue", task),
        3: lambda task: ask("scancel", task),
        4: lambda task: kill(processes_of(number_of(task))),
    }
    while ends:
        for seed in [seed for seed in ends if in_the_middle(tasks[seed][1])]:
            ends.pop(seed)(tasks[seed][0])
        time.sleep(0.05)
    wait_until(lambda: len(study.results()) == 2, "what was queued again to be done")
    assert set(study.results()) == {tasks[1][1].name, tasks[2][1].name}
    assert "queued again, to go on from here" in log_of(study, tasks[1][0])

    limited, directory = tasks[0]
    wait_until(lambda: "queued again, to go on from here" in log_of(study, limited), "the time limit", 240)
    epochs = (directory / "log.jsonl").read_text().splitlines()
    wait_until(lambda: len((directory / "log.jsonl").read_text().splitlines()) > len(epochs), "it to go on")
    assert (directory / "log.jsonl").read_text().splitlines()[: len(epochs)] == epochs  # it did not begin anew
    ask("scancel", limited)
    wait_until(lambda: not ask("squeue", "--noheader"), "all to be over")

    assert study.states() == {"done": 2, "pending": 3}
    said = study.sweeps("status")
    for seed in (0, 3, 4):
        assert f"pending {tasks[seed][1].name} SLURM task {tasks[seed][0]} ended: " in said
        assert in_the_middle(tasks[seed][1])
    assert "small: 4 runs done\n" in study.launch(*POINTS, "sweep.wait=true")
    assert numbers(study.results()) == pytest.approx(numbers(undisturbed), rel=1e-5, abs=1e-9)
    assert study.states() == {"done": 4, "pending": 1}
    assert not list(study.runs.glob("*/earlier"))


def test_a_node_goes_down_and_comes_back(study, slurm, undisturbed, ask, wait_until, number_of, numbers):
    """slurmd is killed, and with it all of one task's processes; the other tasks do not notice."""
    study.launch(*POINTS)
    tasks = study.tasks()
    wait_until(lambda: any(in_the_middle(directory) for _, directory in tasks.values()), "a run to get going")
    lost = next(seed for seed, (_, directory) in tasks.items() if in_the_middle(directory))
    job = number_of(tasks[lost][0])
    kill([int((slurm / "slurmd.pid").read_text()), *keepers_of(job)])
    kill(processes_of(job))
    wait_until(lambda: len(study.results()) >= 3, "the others, which need no slurmd")
    subprocess.run(["slurmd", "-f", slurm / "slurm.conf"], check=True)
    wait_until(lambda: len(study.results()) == 4, "SLURM to notice, and to queue it again", seconds=300)
    assert numbers(study.results()) == pytest.approx(numbers(undisturbed), rel=1e-5, abs=1e-9)
    assert study.states() == {"done": 4}
    assert study.is_clean()
    wait_until(lambda: not ask("squeue", "--noheader"), "the tasks to leave")


def test_two_launch_at_once_and_one_is_killed(study, undisturbed, ask, wait_until, numbers):
    """Right after sbatch has taken its array, with all that belongs to its terminal."""
    launchers = [study.start(*POINTS, start_new_session=True) for _ in range(2)]
    wait_until(lambda: list(study.runs.glob("launches/small/*/tasks.jsonl")), "a launch")
    wait_until(lambda: ask("squeue", "--noheader"), "an array in the queue")
    os.killpg(launchers[0].pid, signal.SIGKILL)
    for launcher in launchers:
        launcher.communicate()
    wait_until(lambda: len(study.results()) == 4, "all runs")
    wait_until(lambda: not ask("squeue", "--noheader"), "the tasks to leave")
    assert numbers(study.results()) == pytest.approx(numbers(undisturbed), rel=1e-5, abs=1e-9)
    assert study.states() == {"done": 4}
    assert study.is_clean()


def test_a_full_disk_costs_no_run(new_study, undisturbed, ask, wait_until, numbers, tmp_path):
    """It is full while a task trains, and until that ends."""
    study = new_study(tmp_path)
    study.runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", study.runs], check=True)
    try:
        study.launch(POINTS[0].partition(",")[0], POINTS[1])
        ((_, directory),) = study.tasks().values()
        wait_until(lambda: in_the_middle(directory), "the run to get going")
        filler = study.runs / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                os.write(file.fileno(), bytes(4096))
        wait_until(lambda: not ask("squeue", "--noheader"), "the task to end")
        assert study.states() == {"pending": 1}
        for path in study.runs.glob("*/*.json"):
            assert json.loads(path.read_text())
        filler.unlink()
        study.launch(POINTS[0].partition(",")[0], POINTS[1], "sweep.wait=true")
        (identity,) = study.results()
        assert numbers(study.results()[identity]) == pytest.approx(numbers(undisturbed[identity]), rel=1e-5, abs=1e-9)
        assert study.is_clean()
    finally:
        subprocess.run(["umount", "--lazy", study.runs], check=True)
