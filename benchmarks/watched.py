"""A running daemon that takes in one large file, watched from outside: memory of intake, and how soon it answers.

The daemon's loop is timed by wishes for a verb that it does not know: it has to wake, read, answer and sync for each,
so the time until the answer lies there is more than the loop's lag, never less.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from daemon import wishes
from daemon.core.paths import Workspace
from daemon.core.records import IntakeReport

COMMANDS = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
LOOK_SECONDS = 0.2
ASK_SECONDS = 0.25
PATIENCE_SECONDS = 4 * 3600


@dataclass
class Memory:
    """Megabytes at their highest."""

    of_process: dict[int, float] = field(default_factory=dict)
    together: float = 0.0  # resident, shared pages counted in each process
    shared_once: float = 0.0  # proportional: shared pages counted once


def watch_intake(root: Path, data: Path) -> None:
    workspace = Workspace(root)
    run("training_daemon", "init", str(root), "--demo")
    daemon = subprocess.Popen(
        [COMMANDS / "training_daemon", "--base-dir", str(root), "run"],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        run("training_controller", "--base-dir", str(root), "pause")  # the file is read, and not trained
        quiet = ask_for(workspace, 10.0)
        began = time.monotonic()
        data.rename(workspace.inbox / data.name)
        memory, busy, report = Memory(), [], None
        asking = threading.Thread(target=keep_asking, args=(workspace, busy), daemon=True)
        asking.start()
        while report is None and time.monotonic() - began < PATIENCE_SECONDS:
            look(root, memory)
            report = next(map(IntakeReport.load, workspace.queue.glob("*/*/report.json")), None)
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - began
        show(report, seconds, memory, quiet, list(busy))
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)


def run(*command: str) -> None:
    subprocess.run([COMMANDS / command[0], *command[1:]], env=ENVIRONMENT, check=True, capture_output=True)


def keep_asking(workspace: Workspace, into: list[float]) -> None:
    while True:
        into.append(ask(workspace))
        time.sleep(ASK_SECONDS)


def ask_for(workspace: Workspace, seconds: float) -> list[float]:
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        times.append(ask(workspace))
        time.sleep(ASK_SECONDS)
    return times


def ask(workspace: Workspace) -> float:
    """Milliseconds until a wish is answered."""
    began = time.monotonic()
    wish = wishes.send(workspace, "no-such-verb")
    answer = workspace.wishes / f"{wish.id}.answer.json"
    while not answer.exists():
        time.sleep(0.001)
    milliseconds = 1000 * (time.monotonic() - began)
    answer.unlink()
    return milliseconds


def look(root: Path, memory: Memory) -> None:
    resident = shared_once = 0.0
    for pid in intake_processes(root):
        try:
            status = fields(Path(f"/proc/{pid}/status"))
            shared_once += fields(Path(f"/proc/{pid}/smaps_rollup"))["Pss"]
        except (OSError, KeyError):
            continue  # it has just ended
        resident += status["VmRSS"]
        memory.of_process[pid] = status["VmHWM"]
    memory.together = max(memory.together, resident)
    memory.shared_once = max(memory.shared_once, shared_once)


def intake_processes(root: Path) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"daemon.data.intake" in words and os.fsencode(root) in words:
            found.append(int(folder.name))
    return found


def fields(path: Path) -> dict[str, float]:
    """The lines of a file of /proc that give kilobytes, in megabytes."""
    pairs = (line.split(":") for line in path.read_text().splitlines() if line.endswith(" kB"))
    return {name: int(value.split()[0]) / 1024 for name, value in pairs}


def show(report: IntakeReport | None, seconds: float, memory: Memory, quiet: list[float], busy: list[float]) -> None:
    if report is None:
        print("intake did not end in time")
        return
    print(
        f"{report.rows:,} rows, {report.bytes / 1e9:.2f} GB in {seconds:.0f} s: {report.bytes / seconds / 1e6:.2f} MB/s"
    )
    peaks = ", ".join(f"{peak:.0f}" for peak in memory.of_process.values())
    print(f"peak memory of each process of intake: {peaks} MB; at one time {memory.together:.0f} MB resident together,")
    print(f"{memory.shared_once:.0f} MB with what they share counted once")
    for name, times in (("at rest", quiet), ("during intake", busy)):
        times.sort()
        middle, late = times[len(times) // 2], times[int(len(times) * 0.99)]
        print(
            f"a wish is answered {name} in p50 {middle:.0f} ms, p99 {late:.0f} ms, at most {times[-1]:.0f} ms;", end=" "
        )
        print(f"{len(times)} wishes")
