"""The priority queue in folders: a job's state is the folder it lies in, and `move` is the one way on."""

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from daemon.core import files
from daemon.core.errors import NotFound, Refused, UsageError
from daemon.core.paths import JOB_DIGESTS, JOB_RECORD, JOB_REJECTED_ROWS, JOB_REPORT, JOB_TOKENS, Workspace
from daemon.core.records import MOVES, WAITING_STATES, Job, State, now

RECORD = JOB_RECORD
REPORT = JOB_REPORT
REJECTED_ROWS = JOB_REJECTED_ROWS
TOKENS = JOB_TOKENS
DIGESTS = JOB_DIGESTS
SLUG_LENGTH = 40


@dataclass(frozen=True)
class Found:
    """A job where it lies now."""

    state: State
    folder: Path
    job: Job

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def data(self) -> Path:
        return self.folder / self.job.data

    @property
    def tokens(self) -> Path:
        return self.folder / TOKENS

    @property
    def report(self) -> Path:
        return self.folder / REPORT


def jobs(workspace: Workspace, *states: State) -> list[Found]:
    """The jobs in these states (all, where none is given), oldest first within each state."""
    return list(iterate(workspace, *states))


def iterate(workspace: Workspace, *states: State) -> Iterator[Found]:
    """The same one by one: who needs only the first of ten thousand opens only that one."""
    for state in states or tuple(State):
        for name in sorted(_names(workspace.state(state))):
            found = look(workspace, state, name)
            if found is not None:
                yield found


def look(workspace: Workspace, state: State, name: str) -> Found | None:
    """The job in this folder, or None where the folder has no readable record."""
    folder = workspace.state(state) / name
    try:
        job = Job.load(folder / RECORD)
    except (ValueError, NotADirectoryError):
        return None
    return Found(state, folder, job) if job else None


def names(workspace: Workspace, state: State) -> list[str]:
    """What lies in a state, oldest first; no file is opened."""
    return sorted(_names(workspace.state(state)))


def waiting(workspace: Workspace) -> list[Found]:
    """What waits, in the order in which it will be trained: high, normal, low; oldest first."""
    return jobs(workspace, *WAITING_STATES)


def processing(workspace: Workspace) -> Found | None:
    """The job being trained, if any."""
    return next(iterate(workspace, State.PROCESSING), None)


def counts(workspace: Workspace) -> dict[str, int]:
    """How many job folders lie in each state; names only, no file is opened."""
    return {state.value: len(_names(workspace.state(state))) for state in State}


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def find(workspace: Workspace, text: str) -> Found:
    """The job with this id, this unique beginning of an id, or this original file name (the newest of that name)."""
    everything = [(state, name) for state in State for name in _names(workspace.state(state))]
    exact = _look_at(workspace, [place for place in everything if place[1] == text])
    begins = _look_at(workspace, [place for place in everything if place[1].startswith(text)])
    # Of ten thousand records only those are opened that may be it: a folder's name ends with its file's. Others are
    # for jobs that people or other programs have named.
    likely = [] if exact else [place for place in everything if place[1].endswith(f"-{slug(text)}")]
    named = _of_file(workspace, likely, text) or ([] if exact or begins else _of_file(workspace, everything, text))
    if exact:
        return exact[0]
    if named:
        return named[-1]
    if len(begins) == 1:
        return begins[0]
    if begins:
        raise UsageError(
            f"{text} is the beginning of {len(begins)} jobs: {', '.join(f.id for f in begins[:5])}.",
            "give more of the id, or the file's name",
        )
    raise NotFound(f"There is no job {text}.", "training_queue list --all shows every job")


def _of_file(workspace: Workspace, places: list[tuple[State, str]], name: str) -> list[Found]:
    return sorted((f for f in _look_at(workspace, places) if f.job.file == name), key=lambda f: f.id)


def _look_at(workspace: Workspace, places: list[tuple[State, str]]) -> list[Found]:
    return [found for state, name in places if (found := look(workspace, state, name))]


def move(
    workspace: Workspace, found: Found, state: State, reason: str | None = None, remedy: str | None = None
) -> Found:
    """The one way on: the facts are written first, then one rename changes the state."""
    if state not in MOVES[found.state]:
        raise Refused(
            f"{found.id} is {found.state} and cannot become {state}.",
            f"from there it can go to: {', '.join(sorted(MOVES[found.state])) or 'nowhere'}",
        )
    changes: dict[str, object] = {"moved_at": now(), "reason": reason, "remedy": remedy}
    waits = next((s for s in (state, found.state) if s in WAITING_STATES), None)
    if waits:
        changes["priority"] = waits.value
    job = found.job.model_copy(update=changes)
    job.save(found.folder / RECORD)
    target = workspace.state(state) / found.folder.name
    files.move(found.folder, target)
    return Found(state, target, job)


def new_id(workspace: Workspace, name: str) -> str:
    """Time, sequence number and slug. Names sort by age even when the clock was set back, and never collide."""
    used = [folder for state in State for folder in _names(workspace.state(state))]
    used += _names(workspace.runs) + [f.name.removeprefix(".") for f in workspace.queue.glob(".*")]
    newest = max((n for n in used if ID.match(n)), default="")
    stamp = datetime.now(UTC).strftime(STAMP)
    sequence = 1
    if newest and newest[:15] >= stamp:
        stamp, sequence = newest[:15], int(newest[16:20]) + 1
    if sequence > 9999:  # a fifth digit would sort before the fourth
        stamp, sequence = (datetime.strptime(stamp, STAMP) + timedelta(seconds=1)).strftime(STAMP), 1
    return f"{stamp}-{sequence:04d}-{slug(name)}"


STAMP = "%Y%m%dT%H%M%S"
ID = re.compile(r"\d{8}T\d{6}-\d{4}-")


def slug(name: str) -> str:
    """A file's name as a safe part of a folder's name."""
    stem = unicodedata.normalize("NFKD", name.split(".")[0]).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_").lower()[:SLUG_LENGTH] or "file"


def printable(name: str) -> str:
    """A file's name, or other words of people, in one line that can be shown and stored, whatever it was made of."""
    return "".join(c if c.isprintable() else _spelled(c) for c in name)


def _spelled(character: str) -> str:
    byte = ord(character) - 0xDC00  # so Python hands on the bytes of a name that are no UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()
