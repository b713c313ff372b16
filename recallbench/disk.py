"""Files that appear whole or not at all, and what is said where the disk does not take them."""

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recallbench.interrupt import CannotGoOn


class DiskTrouble(CannotGoOn):
    """Something could not be written: says what, where, why by the operating system's word, and what to do."""

    def __init__(self, path: Path, error: OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free space" if full else "mend that"
        super().__init__(f"{path} could not be written: {error.strerror}; {remedy} and run the same command again")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong with the disk within the block is told as trouble with `path`. **Raises** `DiskTrouble`."""
    try:
        yield
    except OSError as error:
        raise DiskTrouble(path, error) from error


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """All of the content or, whatever happens, what was there before. **Raises** `DiskTrouble`."""
    with _partial(path, content) as partial:
        os.replace(partial, path)


def write_once(path: Path, content: str) -> bool:
    """All of the content where there is nothing yet, or else what is there: whether it is ours.

    Unlike renaming, a link never takes the place of a file, whoever else writes one at the same time.
    **Raises** `DiskTrouble`.
    """
    with _partial(path, content) as partial:
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(partial)
    return True


@contextmanager
def _partial(path: Path, content: str | bytes | memoryview) -> Iterator[Path]:
    """The content on disk under a name that only this process uses, gone again where something fails."""
    partial = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.partial")
    with writing(path):
        try:
            with partial.open("w" if isinstance(content, str) else "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield partial
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
