"""A daemon's events, followed as they are written: how far each job has come, and what a killed process was doing."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A phase lasts from the event that opens it to the next one.
OPENED_BY = {
    "taken_in": "intake",
    "reading_anew": "intake",
    "reading": "reading",
    "checked": "waiting",
    "preparing": "claim",
    "attempt_started": "loading",
    "attempt_ended": "gate and swap",  # where it was done; else the next attempt is to come
    "verdict": "gate and swap",
    "accepted": "settle",
    "completed": "over",
    "failed": "over",
    "rejected": "over",
    "skipped": "over",
}
MOVING = ("settle", "gate and swap", "claim")  # the daemon is at work on the job itself
WORKING = ("loading", "training", "saving", "ending")  # a worker is
CUT_OFF = ("intake", "reading", "claim", "gate and swap")  # what a new daemon begins again, with an event of its own

# What no kill may lead to: it would mean that something half done was taken for done.
ALARMS = ("error", "model_damaged", "checkpoint_damaged", "trained_again", "intake_crashed", "failed", "rejected")


@dataclass
class Tail:
    """The whole lines that a JSONL file has got since the last look."""

    path: Path
    offset: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists() or self.path.stat().st_size <= self.offset:
            return
        with self.path.open("rb") as content:
            content.seek(self.offset)
            added = content.read()
        whole = added.rfind(b"\n") + 1
        self.offset += whole
        yield from (json.loads(line) for line in added[:whole].splitlines() if line)


@dataclass
class Job:
    """How far one job has come."""

    phase: str = ""
    since: float = 0.0  # by the monotonic clock of who looks
    step: int = 0  # global, of the save that is under way
    attempt_at: str = ""
    log: Tail | None = None


@dataclass
class Story:
    """The events of one workspace, its events.jsonl and its runs' logs, followed."""

    root: Path
    jobs: dict[str, Job] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # how long a phase lasts, a running mean
    daemon_runs: bool = False
    alarms: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._events = Tail(self.root / "status/events.jsonl")

    def follow(self) -> list[tuple[str, str]]:
        """The phases that have been opened since the last look, with their jobs."""
        opened = [news for event in self._events for news in self._take(event)]
        for name, job in self.jobs.items():
            if job.phase in WORKING and job.log:
                opened += [news for line in job.log for news in self._take_of_run(name, job, line)]
        return opened

    def _take(self, event: dict[str, Any]) -> Iterator[tuple[str, str]]:
        if event["event"] == "daemon_started":
            self.daemon_runs = True
            yield from self._begin_again()
        if event["event"] in ALARMS:
            self.alarms.append(event["message"])
        name, phase = event.get("job"), OPENED_BY.get(event["event"])
        if name is None or phase is None:
            return
        if event["event"] == "attempt_ended" and event["ending"] != "done":
            phase = "between attempts"
        job = self._enter(name, phase)
        if phase == "loading":
            job.attempt_at = event["time"]
            job.log = job.log or Tail(self.root / f"runs/{name}/log.jsonl")
        yield name, phase

    def _begin_again(self) -> Iterator[tuple[str, str]]:
        """A new daemon does anew what the last one had begun, and says so; only that it settles, it does not say."""
        for name, job in self.jobs.items():
            if job.phase in CUT_OFF:
                job.phase = "begun by another"
            elif job.phase == "settle" and self._lies_in(name, "processing"):
                yield name, "settle"

    def _take_of_run(self, name: str, job: Job, line: dict[str, Any]) -> Iterator[tuple[str, str]]:
        if line["kind"] != "event" or line["time"] < job.attempt_at:
            return
        phases = {"started": "training", "saving": "saving", "saved": "ending" if line.get("final") else "training"}
        if line["event"] == "saved" and line["step"] != job.step:
            return  # the save before the one that has begun meanwhile
        job.step = line["step"]
        self._enter(name, phases[line["event"]])
        yield name, phases[line["event"]]

    def _enter(self, name: str, phase: str) -> Job:
        job = self.jobs.setdefault(name, Job())
        now = time.monotonic()
        if job.phase and job.phase != phase:
            lasted = now - job.since
            self.seconds[job.phase] = 0.8 * self.seconds.get(job.phase, lasted) + 0.2 * lasted
        job.phase, job.since = phase, now
        return job

    # ---- what was hit ----

    def hit(self, *, worker: bool, daemon: bool) -> str:
        """The phase in which processes were killed a moment ago, a living worker or the daemon among them."""
        self.follow()
        if daemon and not self.daemon_runs:
            return "start of the daemon"
        phases = [self._phase_now(name, job) for name, job in self.jobs.items()]
        moving = [phase for phase in MOVING if phase in phases]
        working = [phase for phase in WORKING if phase in phases]
        reading = ["intake"] if {"intake", "reading"} & set(phases) or self.taking_in() else []
        order = working + moving + reading if worker else moving + reading + working
        return next(iter(order), "between")

    def _phase_now(self, name: str, job: Job) -> str:
        """What the events say, where the disk agrees: the last act of a phase comes before the next phase's event."""
        if job.phase in ("settle", "gate and swap", *WORKING) and not self._lies_in(name, "processing"):
            return "over"
        if job.phase == "saving" and (self.root / f"current_model/checkpoint-{job.step}").exists():
            return "training"
        return job.phase

    def _lies_in(self, name: str, state: str) -> bool:
        return (self.root / "queue" / state / name).exists()

    def taking_in(self) -> bool:
        """A file is on its way from the inbox into the queue."""
        return any(path.is_dir() for path in (self.root / "queue").glob(".*"))
