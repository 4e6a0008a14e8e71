"""Many daemons started at once on one workspace: how many own it. And how soon one is ready with many files waiting.

    python benchmarks/one_owner.py [--rounds 100] [--daemons 20] [--jobs 10000]

A round starts all daemons at the same time, on a workspace whose worker trains and whose owner was killed (in each
second round: ended). One must own it, all others end with code 75. Then so many waiting jobs are made, and a new daemon
is ready when it has published its first status and has answered a wish. Exit code 1 above 3 s, or where a command that
people type takes more than half a second.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from daemon import wishes  # noqa: E402 - from this checkout
from daemon.core.paths import Workspace  # noqa: E402
from tests.acceptance.bench import Bench, rows  # noqa: E402
from tests.helpers_crowd import crowd, start_at_once  # noqa: E402

READY_SECONDS, COMMAND_SECONDS = 3.0, 0.5
TIMES = 5


def contest(bench: Bench, rounds: int, daemons: int) -> list[str]:
    """What was wrong in the rounds."""
    wrong = []
    slowest = 0.0
    for number in range(rounds):
        worker, began = bench.worker_pid(), time.monotonic()
        started = start_at_once(bench, daemons)
        slowest = max(slowest, time.monotonic() - began)
        if len(started.owners) != 1 or started.codes != [75] * (daemons - 1):
            wrong.append(f"round {number}: {len(started.owners)} owners, exit codes {started.codes}")
        if bench.worker_pid() != worker:
            wrong.append(f"round {number}: the worker {worker} is {bench.worker_pid()} now")
        for owner in started.owners:
            # A daemon that is asked to end takes its worker along, one that is killed does not.
            owner.kill()
            owner.wait()
    print(
        f"{rounds} rounds of {daemons} daemons, a worker training all the time: {len(wrong)} without exactly one owner"
    )
    print(f"  the slowest round took {slowest:.1f} s")
    return wrong


def readiness(bench: Bench) -> tuple[float, float]:
    """Seconds from the start of a daemon until its first status, and until it has answered a wish."""
    workspace = Workspace(bench.root)
    wish = wishes.send(workspace, "resume")
    answer = workspace.wishes / f"{wish.id}.answer.json"
    began = time.monotonic()
    bench.start()
    published = time.monotonic() - began
    bench.wait(answer.exists, 120, "the wish is answered")
    return published, time.monotonic() - began


def seconds(bench: Bench, *command: str) -> float:
    taken = []
    for _ in range(TIMES):
        began = time.monotonic()
        done = bench.command(*command)
        taken.append(time.monotonic() - began)
        assert done.returncode == 0, done.stderr
    return statistics.median(taken)


def measure(bench: Bench, jobs: int) -> list[str]:
    """What took too long with so many files waiting."""
    ids = crowd(bench, jobs)
    os.sync()
    wrong, found = [], []
    for _ in range(TIMES):
        found.append(readiness(bench))
        bench.kill_daemon()
    published, answered = (statistics.median(times) for times in zip(*found, strict=True))
    print(f"{jobs} files wait: first status after {published:.2f} s, a wish answered after {answered:.2f} s")
    if max(published, answered) > READY_SECONDS:
        wrong.append(f"ready after {max(published, answered):.2f} s")
    bench.start()
    commands: list[tuple[str, ...]] = [("training_controller", "status"), ("training_queue", "list")]
    commands += [("training_queue", "set-priority", ids[-1], "high"), ("training_queue", "list", "--json")]
    for command in commands:
        took = seconds(bench, *command)
        print(f"  {' '.join(command):60} {took:.2f} s")
        if took > COMMAND_SECONDS and "--json" not in command:
            wrong.append(f"{' '.join(command)} took {took:.2f} s")
    return wrong


def make(folder: Path, name: str, model: Path, **settings: Any) -> Bench:
    return Bench.make(folder / name, model, save_steps=10**6, **settings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--daemons", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "tiny"
        model.mkdir()
        subprocess.run([sys.executable, "-P", "-m", "daemon.worker.embedded", str(model)], check=True)
        wrong = []
        if options.rounds:
            bench = make(Path(place), "contest", model, num_train_epochs=10**6)
            try:
                bench.start().drop("long.jsonl", rows(8))
                bench.wait_for_step(1)
                bench.kill_daemon()
                wrong += contest(bench, options.rounds, options.daemons)
            finally:
                bench.end()
        if options.jobs:
            bench = make(Path(place), "crowd", model, num_train_epochs=10**6)
            try:
                wrong += measure(bench, options.jobs)
            finally:
                bench.end()
    print("\n".join(wrong) or "0 violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
