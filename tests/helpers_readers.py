"""Readers of the status beside a busy writer: what each of their reads was."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from daemon import wishes
from daemon.core.paths import Workspace
from daemon.views import STATUS_KEYS
from tests.acceptance.bench import Bench

STATES = (
    "idle",
    "starting",
    "training",
    "evaluating",
    "saving",
    "paused",
    "stopping",
    "recovering",
    "stopped",
    "error",
)


def judge(data: bytes) -> str:
    """What a reader has in hand: `good`, or what is wrong with it."""
    try:
        status = json.loads(data)
    except ValueError:
        return "unparsable"
    if not isinstance(status, dict) or set(STATUS_KEYS) - status.keys():
        return "incomplete"
    return "good" if status["status"] in STATES and isinstance(status["queue"], dict) else "not valid"


def read(path: Path, reads: int, versions_wanted: int) -> tuple[Counter[str], set[str]]:
    """At least so many reads, as fast as they go, and on until so many statuses were seen or a minute is over.

    Returns how many were what, and the different contents by their time.
    """
    found: Counter[str] = Counter()
    versions: set[str] = set()
    until = time.monotonic() + 60
    while found.total() < reads or (len(versions) < versions_wanted and time.monotonic() < until):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            found["missing"] += 1
            continue
        said = judge(data)
        found[said] += 1
        if said == "good":
            versions.add(json.loads(data)["updated_at"])
    return found, versions


def read_together(root: Path, reads: int, readers: int, *, versions: int = 1) -> dict[str, Any]:
    """At least so many reads of a workspace's status, shared by processes, each of which sees so many statuses."""
    path, began = Workspace(root).status, time.monotonic()
    with get_context("spawn").Pool(readers) as pool:
        parts = pool.starmap(read, [(path, -(-reads // readers), versions)] * readers)
    found: Counter[str] = sum((counts for counts, _ in parts), Counter())
    seen = set().union(*(versions for _, versions in parts))
    return {"found": found, "versions": len(seen), "seconds": time.monotonic() - began}


@contextmanager
def busy(bench: Bench) -> Iterator[None]:
    """The waiting job changes its priority again and again, and each time the status is written at once."""
    (job,) = bench.jobs("normal")
    ended = threading.Event()

    def turn() -> None:
        priorities = cycle(("high", "low", "normal"))
        while not ended.wait(0.02):
            wishes.send(Workspace(bench.root), "set_priority", job, {"priority": next(priorities)})

    wishing = threading.Thread(target=turn)
    wishing.start()
    try:
        yield
    finally:
        ended.set()
        wishing.join()
