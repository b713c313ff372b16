"""What a run is done under: a claim, unless it is done, held by another process, or has killed too many already."""

from collections.abc import Iterator
from contextlib import contextmanager

from recallbench.checkpoint import WritableDirectory
from recallbench.claim import Claim, ClaimLost
from recallbench.device import choose_device
from recallbench.execution import ExecutionConfig
from recallbench.provenance import provenance

DEATHS = 3
"""So many processes may die at a run, one after the other and without a checkpoint, before it counts as failed."""


@contextmanager
def claimed(directory: WritableDirectory, execution: ExecutionConfig) -> Iterator[bool]:
    """Whether this process is to do the run, which it then holds until the block ends."""
    claim = directory.take()
    if claim is None:
        yield False
        return
    try:
        yield _begun(directory, claim, execution)
    finally:
        claim.release()


def _begun(directory: WritableDirectory, claim: Claim, execution: ExecutionConfig) -> bool:
    """Whether a run that this process has claimed is to be done."""
    if directory.has_record() and execution.rerun:
        directory.set_aside()
        claim.forget_earlier()
    if directory.has_record():
        claim.finish()
        return False
    try:
        if claim.deaths < DEATHS:
            directory.begin()
            return True
        reason = f"its process died {claim.deaths} times without reaching a checkpoint (killed, or out of host memory?)"
        came_from = {"provenance": provenance(choose_device(execution.device), 1)}
        directory.write_record(execution.study, "failed", reason, came_from)
    except ClaimLost:
        pass
    return False
