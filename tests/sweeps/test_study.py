"""A study's points: composed as Hydra composes them, checked all, and each in one job."""

import io
import json

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from models.settings import SettingError, SettingErrors
from recallbench.__main__ import CONFIGURATION
from recallbench.checkpoint import WritableDirectory
from recallbench.composition import plain
from recallbench.runs import resolve, runs_of
from sweeps.compose import Composer
from sweeps.grid import axes_of, expand
from sweeps.study import check_points, group, run_study


def load(overrides):
    return hydra.compose("config", overrides=list(overrides))


@pytest.fixture(scope="module")
def compose():
    """From a point to its configuration, as a sweep composes it."""
    with hydra.initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        yield Composer(load, GlobalHydra.instance().config_loader())


def axis(name, values):
    return st.sampled_from([f"{name}={value}" for value in values])


values = st.lists(
    st.one_of(
        axis("mixer", ["attention", "based"]),
        axis("model", ["two_layer", "based"]),
        axis("task", ["mqar", "mqar_based", "{power:0.5,seed:4}"]),
        axis("seed", [1, "null", "nine"]),
        axis("train.learning_rate", [1e-05, 3e-3]),
        axis("train.stop_at_accuracy", ["null", 0.5]),
        axis("model.layers", ["[mixer]", "[short_conv,{name:attention,num_heads:2}]"]),
        axis("task.train", ["null", "[{sequence_length:64,num_kv_pairs:4,num_examples:10}]"]),
        axis("mixer.feature_dim", [8]),
        axis("mixer.feature_dim.more", [8]),
        axis("+mixer.extra", ["1"]),
        axis("runs", ["'a, b'", "${study}"]),
        st.just("~train.weight_decay"),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=20, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(point=values)
@example(point=["train.epochs=2", "train.learning_rate=0.1", "train.epochs=3"])
@example(point=["mixer.feature_dim=8", "mixer=attention"])
@example(point=["model=based", "mixer=attention"])
@example(point=["task={power:0.5}", "task.seed=3", "task=mqar_based"])
def test_points_are_composed_as_hydra_composes_them(point, compose):
    def outcome(composer):
        try:
            return composer(point)
        except (HydraException, SettingError) as error:
            return type(error), str(error).splitlines()[0]

    assert outcome(compose) == outcome(lambda point: plain(load(point)))


sound = st.lists(
    st.tuples(
        axis("mixer", ["attention", "based"]),
        axis("train.learning_rate", [0.1, 1e-05, 3e-3]),
        axis("seed", [0, 1]),
        axis("model.d_model", [16, 32]),
        axis("task.seed", [0, 1]),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=12, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(points=sound)
def test_every_run_is_in_one_job_with_what_differs_in_rate_and_seed_alone(points, compose):
    found = check_points(points, compose)
    identities = {resolve(compose(point)).identity for point in points}
    assert len(found) == len(identities)
    grouped = group(found)
    jobs = [runs_of(job.settings) for job in grouped]
    for job, runs in zip(grouped, jobs, strict=True):  # by settings, by overrides and as a list, they are the same
        assert [run.identity for run in runs_of(compose(job.overrides))] == job.identities
        assert [run.identity for run in runs] == job.identities
    of_jobs = [run.identity for job in jobs for run in job]
    assert sorted(of_jobs) == sorted(identities)
    free = {"train.learning_rate", "seed"}
    shared = [{k: repr(v) for k, v in run.settings.items() if k not in free} for job in jobs for run in job[:1]]
    assert len({tuple(sorted(s.items())) for s in shared}) == len(jobs)  # two jobs could not have been one
    for job, same in zip(jobs, shared, strict=True):
        for run in job:
            assert {key: repr(value) for key, value in run.settings.items() if key not in free} == same


def _checked(primary, arguments):
    """The points of a study, composed and checked."""
    config, loader = hydra.compose(primary, arguments, return_hydra_config=True), GlobalHydra.instance().config_loader()
    points = expand(arguments, *axes_of(config), loader)
    return check_points(points, Composer(lambda overrides: hydra.compose(primary, overrides=overrides), loader))


STUDIES = [path for path in (CONFIGURATION / "study").iterdir() if "/model: trained" not in path.read_text()]
"""All but what asks models that are trained first, as tests/e2e/test_real_recall.py does."""


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
@pytest.mark.usefixtures("compose")
def test_every_study_that_comes_along_can_be_run(path, tmp_path):
    measures = any(line.strip().startswith("throughput") for line in path.read_text().splitlines())
    primary = "throughput" if measures else "config"
    arguments = [f"+study={path.stem}", *(["throughput.device_name=of_a_cluster"] if measures else [])]
    if "/task: lm" in path.read_text():
        (tmp_path / "text.jsonl").write_text(3 * (json.dumps({"text": 3000 * "a"}) + "\n"))
        arguments += [f"data.path={tmp_path}/text.jsonl", "data.tokenizer=bytes", f"data.folder={tmp_path}/corpora"]
    found = _checked(primary, arguments)
    (name,) = {checked.settings["study"] for checked in found}
    assert name == path.stem or (path.with_stem(name).exists() and path.stem.startswith(name))  # or is a part of it
    jobs = group(found)
    assert sum(len(runs_of(job.settings)) for job in jobs) == len(found) >= len(jobs) > 1


@pytest.mark.usefixtures("compose")
def test_an_axis_may_refer_to_a_setting_of_its_point():
    found = [checked.settings for checked in _checked("config", ["+study=based_figure3"])]
    widths = {
        (settings["mixer"]["feature_dim"], settings["model"]["d_model"])
        for settings in found
        if settings["mixer"]["name"] == "cosformer"
    }
    assert widths == {(K, K) for K in (64, 128, 256, 512)} | {(64, D) for D in (128, 256, 512)}


class Noting:
    """A launcher that notes its jobs and carries none out."""

    submits = False

    def __init__(self):
        self.jobs = []

    def check(self, runs, execution):
        pass

    def launch_jobs(self, jobs, execution, console):
        self.jobs += jobs


@pytest.fixture
def study(compose, tmp_path):
    """Run a study whose launcher notes its jobs; what was printed, and the jobs."""

    def of(points, *overrides):
        launcher, said = Noting(), Console(file=io.StringIO(), width=200)
        shared = (f"runs={tmp_path}/runs", *overrides)
        run_study([(*shared, *point) for point in points], compose, launcher, said)
        return said.file.getvalue(), launcher.jobs

    return of


def record(runs, run):
    directory = WritableDirectory(runs, run)
    directory.take()
    directory.begin()
    directory.write_record(None, "completed", None, {})
    return directory


def test_everything_wrong_is_said_before_anything_runs(study, tmp_path):
    points = [("mixer=attention", "mixer.num_heads=3"), ("mixer=based",), ("train.epochs=0",), ("train.epochs=0",)]
    with pytest.raises(SettingErrors) as raised:
        study(points)
    assert str(raised.value).splitlines() == [
        "mixer.num_heads is 3: it must divide the model width d_model = 64",
        "train.epochs is 0: it should be greater than 0",
    ]
    assert not (tmp_path / "runs").exists()


def test_what_has_a_record_is_left_alone_unless_asked(study, compose, tmp_path):
    points = [("seed=0",), ("seed=1",), ("seed=1", "task.seed=0"), ("seed=0", "model.d_model=32")]

    def seeds(jobs):
        return [[run.seed for run in job.runs] for job in jobs]

    said, jobs = study(points)
    assert said.startswith("sweep: 3 runs, 0 done, 3 to go")
    assert seeds(jobs) == [[0, 1], [0]]
    record(tmp_path / "runs", resolve(compose(("seed=1",))))
    said, jobs = study(points)
    assert said.startswith("sweep: 3 runs, 1 done, 2 to go")
    assert seeds(jobs) == [[0], [0]]
    said, jobs = study(points, "rerun=true")
    assert said.startswith("sweep: 3 runs, 0 done, 3 to go")
    assert seeds(jobs) == [[0, 1], [0]]


def test_an_imported_record_comes_without_weights_to_start_from(study, compose, tmp_path):
    trained, *others = [(f"decode.state_dtype={dtype}",) for dtype in ("null", "bfloat16", "float16")]
    directory = record(tmp_path / "runs", resolve(compose(trained)))
    with pytest.raises(SettingErrors) as raised:
        study([trained, *others])
    assert str(raised.value).splitlines() == [
        f"decode.state_dtype is '{dtype}': its training has a record in {tmp_path}/runs and no weights; "
        "with null, rerun=true trains it again"
        for dtype in ("bfloat16", "float16")
    ]
    assert study([trained])[1] == []
    directory.weights_path.touch()
    assert len(study([trained, *others])[1]) == 1


def test_a_run_is_called_by_what_sets_it_apart(compose, tmp_path):
    class Recording(Noting):
        def launch_jobs(self, jobs, execution, console):
            for run in (run for job in jobs for run in job.runs):
                record(tmp_path / "runs", run)

    said = Console(file=io.StringIO(), width=200)
    points = [(f"model.d_model={D}", "mixer.feature_dim=${model.d_model}") for D in (16, 32)]
    points.append(("model.d_model=16", "mixer.feature_dim=8"))
    run_study([(f"runs={tmp_path}/runs", "mixer=based", *p) for p in points], compose, Recording(), said)
    for D, K in ((16, 16), (32, 32), (16, 8)):
        assert f"  model.d_model={D} mixer.feature_dim={K}\n" in said.file.getvalue()


def test_the_manifest_lists_every_run_of_a_study(compose, tmp_path):
    def named(point):
        return {**compose(point), "study": "mine"}

    for seeds in ((0, 1), (1, 2)):
        points = [(f"runs={tmp_path}", f"seed={seed}") for seed in seeds]
        run_study(points, named, Noting(), Console(file=io.StringIO()))
    manifest = json.loads((tmp_path / "studies" / "mine.json").read_text())
    expected = [resolve(compose((f"seed={seed}",))).identity for seed in (0, 1, 2)]
    assert manifest == {"study": "mine", "identities": expected}
