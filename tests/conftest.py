"""How tests run: without time limits, when Python looks for garbage, how workers of pytest-xdist share the tests."""

import gc
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling


def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis holds no example to 0.2 s, which on a busy machine says nothing of the code.

    Python looks for garbage after 700 new objects, of which there are millions: a twentieth of the time.
    """
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Modules stay to the end: nobody looks for garbage among them, as each measurement of a speed would."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores, since the tests of SLURM wait for others most of their time."""
    return 1 + (os.cpu_count() or 1)


TOGETHER = (
    "tests/slurm/",  # of which there is one
    "tests/analysis/test_figures.py",
    "tests/analysis/test_report.py",
    "tests/e2e/test_study_to_figures.py",
    "tests/sweeps/test_import_export.py",
    "tests/sweeps/test_pool.py",
)
"""Tests that go to one worker, since each worker makes for itself what they share: a browser, figures, a study."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadScopeScheduling":
    """One worker takes all tests of a place in `TOGETHER`; the others go one by one to who is free.

    The mark `xdist_group` would do that, but for pytest-xdist 3.8 with pytest 9, where it has no effect.
    """
    from xdist.scheduler import LoadScopeScheduling

    class SomeTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)

    return SomeTogether(config, log)
