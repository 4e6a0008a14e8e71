"""The fork server: imports once, then forks one attempt for each folder named on standard input; never touches CUDA."""

import contextlib
import io
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from daemon.core import files, room
from daemon.core.attempts import SERVER_READY, ExitInfo
from daemon.core.errors import WorkerExit
from daemon.core.paths import Attempt
from daemon.core.records import now

# transformers imports `datasets` wherever it is installed: four more seconds until the first step, and a thread of
# pyarrow's that a fork cannot take along. Nothing here uses it.
sys.modules.setdefault("datasets", None)  # type: ignore[arg-type]
from daemon.worker import attempt  # noqa: E402

AGAIN_SECONDS = 0.1  # between two tries to write down how a worker ended


class _Patient(io.FileIO):
    """A log. What its disk does not take is lost, and nobody who writes hears of it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def main() -> None:
    sys.stdout, sys.stderr = _patient(1), _patient(2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which asks the worker to save
    _assert_clean()
    print(SERVER_READY, flush=True)
    # The raw descriptor: a forked child must not inherit lines that Python has read ahead.
    while folder := _read_line():
        pid = os.fork()
        if pid == 0:
            os._exit(_child(Path(folder)))
        _end_with_all_it_started(pid)
        _, status = os.waitpid(pid, 0)
        _record(Attempt(Path(folder)), pid, status)


def _patient(descriptor: int) -> io.TextIOWrapper:
    """Also for the children, whose output goes elsewhere by the same number."""
    raw = _Patient(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def _child(folder: Path) -> int:
    os.setsid()  # a group of its own, so that it can be ended with all that it started
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    try:
        Path("/proc/self/oom_score_adj").write_text("500")  # if memory runs out, the worker goes, not the daemon
        return attempt.run(folder)
    except BaseException:  # whatever it is, a child must never go on in the server's loop
        traceback.print_exc()
        return WorkerExit.BUG
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _end_with_all_it_started(pid: int) -> None:
    """Wait for the attempt's end; what it leaves running goes too: it may hold the GPU's memory."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # not buried yet, so its number is nobody else's
    with contextlib.suppress(ProcessLookupError):  # it ended before it had a group of its own
        os.killpg(pid, signal.SIGKILL)


def _read_line() -> str:
    line = b""
    while (character := os.read(0, 1)) not in (b"", b"\n"):
        line += character
    return line.decode()


def _record(ended: Attempt, pid: int, status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    info = ExitInfo(pid=pid, code=code if code >= 0 else None, signal=-code if code < 0 else None, at=now())
    while True:
        try:
            return files.write_json(ended.exit, info)
        except OSError as error:
            if room.refusal(error) is None or not ended.root.is_dir():
                raise
            time.sleep(AGAIN_SECONDS)  # nobody else knows how the worker ended: without this it would count as lost


def _assert_clean() -> None:
    """A fork copies neither threads nor a CUDA context: there must be none."""
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads before the fork"
    assert not torch.cuda.is_initialized(), "CUDA was initialised before the fork"


if __name__ == "__main__":
    main()
