"""What a task may ask of SLURM, checked where there need be no SLURM."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.settings import SettingError, SettingErrors
from sweeps.slurm import SlurmConfig, check_slurm, pack
from sweeps.study import Job


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tim": 3}, "hydra.launcher.tim is 3: there is no such setting; did you mean time?"),
        ({"time": "soon"}, "hydra.launcher.time is 'soon': it must be minutes, HOURS:MM:SS or DAYS-HOURS:MM:SS"),
        ({"time": "0:75:00"}, "hydra.launcher.time is '0:75:00': it must be minutes"),
        ({"time": 1}, "hydra.launcher.signal_delay is 120: it must be less than the time of a task, 60 s"),
        ({"mem_gb": -1.0}, "hydra.launcher.mem_gb is -1.0: it should be greater than 0"),
        ({"gpus_per_task": "two"}, "hydra.launcher.gpus_per_task is 'two': it should be a valid integer"),
        ({"sbatch": {"job_name": "x"}}, "hydra.launcher.sbatch.job_name is 'x': it is set otherwise"),
        ({"sbatch": {"partition": "x"}}, "hydra.launcher.sbatch.partition is 'x': it is set otherwise"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(settings, sentence):
    with pytest.raises(SettingErrors) as raised:
        check_slurm(settings)
    assert str(raised.value).startswith(sentence)


@given(days=st.integers(0, 99), hours=st.integers(0, 23), minutes=st.integers(0, 59), seconds=st.integers(0, 59))
def test_a_time_is_read_as_slurm_reads_it(days, hours, minutes, seconds):
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert SlurmConfig(time=f"{days}-{hours}:{minutes:02}:{seconds:02}").seconds == expected
    assert SlurmConfig(time=f"{24 * days + hours}:{minutes:02}:{seconds:02}").seconds == expected


def test_no_time_is_refused_where_no_slurm_is(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SettingError, match="it needs SLURM, and this machine has no sbatch"):
        check_slurm({})


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30), runs_per_task=st.integers(1, 12))
def test_jobs_are_packed_in_order_and_never_parted(sizes, runs_per_task):
    jobs = [Job([], {}, [None] * size) for size in sizes]
    tasks = pack(jobs, runs_per_task)
    assert [job for task in tasks for job in task] == jobs
    for task, following in zip(tasks, [*tasks[1:], None], strict=True):
        runs = [len(job.runs) for job in task]
        assert len(task) == 1 or sum(runs) <= runs_per_task
        assert following is None or sum(runs) + len(following[0].runs) > runs_per_task  # no room was left
