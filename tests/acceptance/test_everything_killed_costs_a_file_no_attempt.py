"""Daemon, fork server and worker gone at once, again and again before the first save: no fault of the file's."""

import json
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from daemon.core import heartbeat
from daemon.jobs.recovery import MAX_ATTEMPTS_WITHOUT_PROGRESS
from tests.acceptance.bench import Bench, rows
from tests.acceptance.torture import Torturer

PATIENCE_SECONDS = 300


def trains(bench: Bench) -> bool:
    """The living worker has made its first update."""
    if not bench.worker_pid():
        return False
    holder = json.loads((bench.root / "status/worker.lock").read_text())
    beat = heartbeat.read(Path(holder["attempt"]) / "heartbeat")
    return beat is not None and beat.job_step > 0


@pytest.mark.timeout(1800)
def test_everything_is_killed_before_the_first_save(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(save_steps=1000)
    torturer = Torturer(bench, kills=0, files=1, seed=0, stop=Event())
    bench.launch()
    torturer.drop(rows(400))
    for _ in range(MAX_ATTEMPTS_WITHOUT_PROGRESS):
        bench.wait(lambda: trains(bench), PATIENCE_SECONDS, "the first update")
        torturer.kill("all")
    bench.wait(lambda: bench.jobs("completed") or bench.jobs("failed"), PATIENCE_SECONDS, "an end")
    endings = [event["ending"] for event in bench.events("attempt_ended")]
    assert bench.jobs("completed") and endings.count("vanished") == MAX_ATTEMPTS_WITHOUT_PROGRESS, endings
