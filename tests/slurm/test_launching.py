"""What a launch submits, says and leaves to others, and how it is looked after."""

import json
import re
import subprocess
import sys


def test_a_launch_returns_at_once_and_goes_on_without_anyone(study, ask, wait_until):
    """Five groups of two members; four runs a task; what is queued is not queued again."""
    points = ("task.seed=0,1,2,3,4", "seed=0,1", "train.epochs=2", "sweep.runs_per_task=4")
    said = study.launch(*points)
    array = re.search(r"SLURM job (\d+): 3 tasks with 10 runs\n", said)
    assert array, said
    assert "python -m sweeps status small --runs" in said
    again = study.launch(*points, "hydra.launcher.partition=nowhere")  # refused, were there anything to submit
    assert re.search(r"\d+ runs? queued already\n|10 done, 0 to go\n", again), again  # some may be done by now
    assert "SLURM job" not in again
    (launch,) = study.runs.glob("launches/small/*/tasks.jsonl")
    identities, *jobs = map(json.loads, launch.read_text().splitlines())
    assert [len(task) for task in identities] == [4, 4, 2]
    assert [len(task) for task in jobs] == [2, 2, 1]
    states = study.states()
    assert sum(states.values()) == 10
    assert states.keys() <= {"done", "running", "queued"}
    more = study.launch(*points, "task.seed=0,1,2,3,4,5", "sweep.wait=true")
    assert re.search(r"SLURM job \d+: 1 task with 2 runs\n", more), more
    assert "small: 12 runs done" in more
    assert study.states() == {"done": 12}
    assert study.is_clean()
    assert all(record["completed"] for record in study.results().values())
    wait_until(lambda: not ask("squeue", "--noheader"), "the tasks to leave")


def test_what_slurm_does_not_take_is_said_in_its_words(study):
    process = study.start("+hydra.launcher.sbatch.nodelist=nowhere", "task.seed=0", stderr=subprocess.PIPE)
    _, said = process.communicate()
    assert process.returncode == 1
    assert said.startswith("sbatch: error: ")
    assert "nowhere" in said or "node" in said
    assert "Traceback" not in said
    assert not list(study.runs.glob("launches/small/*/tasks.jsonl"))


def test_cancel_saves_and_the_other_commands_know_the_study(study, ask, wait_until, tmp_path):
    """An array, and a process of this machine, both in the middle of it."""
    short = ("task.seed=0", "train.epochs=1")
    study.launch(*short, launcher="local")
    asked = [sys.executable, "-m", "sweeps", "status", "smal", "--runs", str(study.runs)]
    unknown = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (unknown.returncode, unknown.stderr) == (2, f"there is no study smal in {study.runs}; there are small\n")
    table = tmp_path / "table.parquet"
    assert study.sweeps("export", "--out", str(table)) == f"1 runs in {table}\n"
    study.launch("task.seed=1", "train.epochs=400")
    here = study.start("task.seed=2", "train.epochs=400", launcher="local", stderr=subprocess.PIPE)
    wait_until(lambda: len(list(study.runs.glob("*/checkpoint.pt"))) == 2, "both to be in the middle")
    assert study.states() == {"done": 1, "running": 2}
    said = study.sweeps("cancel")
    assert re.search(r"^SLURM: cancelled \d+\n.*asked \d+ to save and leave\n$", said, re.DOTALL), said
    here.communicate()
    wait_until(lambda: not ask("squeue", "--noheader"), "the task to leave")
    assert study.states() == {"done": 1, "pending": 2}
    assert len(list(study.runs.glob("*/checkpoint.pt"))) == 2

    (record,) = study.runs.glob("*/result.json")
    expected = study.results()
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "failed", "reason": "a bad day"}))
    assert "a bad day" in study.sweeps("status")
    study.sweeps("retry")
    assert study.results() == expected
    assert len(list(record.parent.glob("earlier/*.result.json"))) == 1
