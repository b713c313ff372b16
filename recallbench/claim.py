"""Who works on a run: a claim on its directory, kept alive by a heartbeat, among processes on any machines.

<directory>/claim.<g>   g = 0, 1, 2, ...: the holder is the one of the highest g

A claim is written under a name of its own and then linked to the next g, which fails where someone was faster: a link
is atomic on NFS, too. Nothing live is ever replaced or removed, so that no two processes can both believe to have won.
The holder touches its claim every `HEARTBEAT` seconds. A claim is free for the next to take once its holder has let go
of it (a last heartbeat in 1970), is dead as far as this machine can tell, or has not been heard of for `STALE` seconds
by the clock of the file server; the clocks of machines may differ. A holder that was suspended for so long finds a
higher g when it comes back, and must write no more.

Claims that nobody let go of are deaths: they stay until the run has a checkpoint, and are counted.
"""

import functools
import json
import os
import platform
import re
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recallbench.disk import writing

HEARTBEAT = 10.0
"""Seconds between two heartbeats."""

STALE = 60.0
"""Seconds without a heartbeat after which a claim is free."""

NAME = re.compile(r"claim\.(\d+)")


class ClaimLost(Exception):
    """Another process has taken over a run, since this one was not heard of for too long; it must write no more."""


@dataclass(frozen=True)
class Holder:
    """The process that works on a run."""

    host: str
    pid: int
    job: str | None  # of SLURM: the array's, where it is of an array
    task: str | None  # of SLURM: the index in the array
    since: float  # seconds since 1970, by its own clock
    heartbeat: float  # the last one, by the file server's clock
    here: bool  # a process of this machine, which lives for all that one can see

    def __str__(self) -> str:
        task = "" if self.job is None else f" (SLURM job {'_'.join(filter(None, (self.job, self.task)))})"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}{task}, since {since}"


class Claim:
    """A claim that this process has taken. `deaths`: processes that died at the run since its last checkpoint."""

    def __init__(self, directory: Path, generation: int, token: str, deaths: int):
        self.directory, self.generation, self.deaths = directory, generation, deaths
        self.path = directory / f"claim.{generation}"
        self._token = token

    def held(self) -> bool:
        """Whether this process still is the holder."""
        generations = _generations(self.directory)
        if max(generations, default=-1) != self.generation:
            return False
        content, _ = _read(self.path) or ({}, 0)
        return content.get("token") == self._token

    def release(self) -> None:
        """Let go of a run that is not done: it is free at once, and this was no death."""
        self._beat_no_more()
        with suppress(OSError):  # it goes stale by itself
            if self.held():
                os.utime(self.path, (0, 0))

    def forget_earlier(self) -> None:
        """The run has got on: who died at it before counts no more."""
        self.deaths = 0
        for generation, path in _generations(self.directory).items():
            if generation < self.generation:
                path.unlink(missing_ok=True)

    def finish(self) -> None:
        """The run is done: nothing of it is left to claim."""
        self._beat_no_more()
        if self.held():
            self.forget_earlier()
            self.path.unlink(missing_ok=True)

    def _beat_no_more(self) -> None:
        with _lock:
            _beating.discard(self)


def take(directory: Path) -> Claim | None:
    """Claim a run directory, which is made where it is missing, or None where a live process holds it.

    What dead processes have left half-written in it is removed. **Raises** `recallbench.disk.DiskTrouble`.
    """
    token = secrets.token_hex(8)
    own = directory / f"claim.{token}.partial"
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            own.write_text(json.dumps({"token": token, **_this_process()}))
            claim = _link(directory, own, token)
        except FileNotFoundError:  # swept away by who won
            return None
        finally:
            with suppress(OSError):
                own.unlink(missing_ok=True)
        if claim is None:
            return None
        for partial in directory.glob("*.partial"):
            partial.unlink(missing_ok=True)
    with _lock:
        _beating.add(claim)
        _keep_beating()
    return claim


def holder(directory: Path, now: float | None = None) -> Holder | None:
    """The live process that holds a run directory, if there is one. Writes nothing but, to learn the time, a moment's
    file beside the directory.

    **Arguments:** `now`: the time by `server_time`, to ask it once for many directories.
    """
    generations = _generations(directory)
    found = _read(generations[max(generations)]) if generations else None
    if found is None:
        return None
    content, heartbeat = found
    if _free(content, heartbeat, server_time(directory.parent) if now is None else now):
        return None
    return Holder(
        content.get("host", "an unknown host"),
        content.get("pid", 0),
        content.get("job"),
        content.get("task"),
        content.get("since", heartbeat),
        heartbeat,
        content.get("place") == _place(),
    )


def server_time(folder: Path) -> float:
    """Seconds since 1970 by the clock of the file server, or of this machine where the folder cannot be written to."""
    own = folder / f"clock.{secrets.token_hex(8)}.partial"
    try:
        own.touch()
        return own.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)


def _link(directory: Path, own: Path, token: str) -> Claim | None:
    """Put `own` in the place of the next generation, if the highest is free and nobody is faster."""
    os.utime(own)
    now = own.stat().st_mtime
    generations = _generations(directory)
    beats = {generation: found for generation, path in generations.items() if (found := _read(path))}
    top = max(generations, default=-1)
    if top in beats and not _free(*beats[top], now):
        return None
    deaths = sum(heartbeat != 0 for _, heartbeat in beats.values())
    claim = Claim(directory, top + 1, token, deaths)
    with suppress(FileExistsError):  # a file server may have linked it and say so of its own second try
        os.link(own, claim.path)
    if claim.held():
        return claim
    content, _ = _read(claim.path) or ({}, 0)
    if content.get("token") == token:  # this process was suspended, and others have come and gone
        claim.path.unlink(missing_ok=True)
    return None


def _generations(directory: Path) -> dict[int, Path]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return {}
    return {int(found[1]): directory / name for name in names if (found := NAME.fullmatch(name))}


def _read(path: Path) -> tuple[dict[str, Any], float] | None:
    """What a claim says, and its last heartbeat; None where it is gone.

    The file is opened for the heartbeat too: only at that does an NFS client ask the server rather than its cache.
    """
    try:
        with path.open() as file:
            text, heartbeat = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        return json.loads(text), heartbeat
    except ValueError:  # of a machine that lost power: the heartbeat tells the rest
        return {}, heartbeat


def _free(content: dict[str, Any], heartbeat: float, now: float) -> bool:
    if heartbeat == 0 or now - heartbeat > STALE:
        return True
    return content.get("place") == _place() and content.get("started") != _started(content["pid"])


def _this_process() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "place": _place(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "job": os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID")),
        "task": os.environ.get("SLURM_ARRAY_TASK_ID"),
        "since": time.time(),
    }


@functools.cache
def _place() -> str:
    """Equal for two processes that see each other's process ids: one boot of one machine, one namespace."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process of this machine began, in whatever unit; None where it is dead, "unknown" without /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "unknown" if not Path("/proc/self").exists() and _exists(pid) else None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


_beating: set[Claim] = set()
_lock = threading.Lock()
_thread: threading.Thread | None = None


def _keep_beating() -> None:
    """Have a thread that beats for all claims of this process, as long as there are any."""
    global _thread  # noqa: PLW0603 - one thread a process
    if _thread is None or not _thread.is_alive():  # it does not live on in a fork
        _thread = threading.Thread(target=_beat, daemon=True)
        _thread.start()


def _beat() -> None:
    global _thread  # noqa: PLW0603
    while True:
        time.sleep(HEARTBEAT)
        with _lock:
            if not _beating:
                _thread = None
                return
            for claim in tuple(_beating):
                with suppress(OSError):  # the next heartbeat may do better
                    if claim.held():
                        os.utime(claim.path)
                    else:
                        _beating.discard(claim)
