"""How faces ask: a wish is a small file, answered with what was done; a dropped file is a wish to train it."""

import os
import secrets
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from daemon import views
from daemon.core import files, locks
from daemon.core.errors import (
    BadConfig,
    BadData,
    DaemonError,
    Exit,
    Locked,
    NotFound,
    NotRunning,
    Refused,
    TimedOut,
    UsageError,
)
from daemon.core.paths import Workspace
from daemon.core.records import Answer, Wish, now
from daemon.jobs.inbox import UNFINISHED_SUFFIXES
from daemon.jobs.sidecar import SUFFIXES as SIDECAR_SUFFIXES

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.05
# A daemon that re-executes itself may be without its lock for a moment; that is not its end.
GRACE_SECONDS = 3.0
# A daemon may be just starting, or starting again; after this long nobody is coming.
ALONE_SECONDS = 15.0
ERRORS = {kind.exit: kind for kind in (UsageError, NotRunning, NotFound, Refused, TimedOut, BadData, Locked, BadConfig)}


# ---- wishes ----


def ask(
    workspace: Workspace,
    verb: str,
    job: str | None = None,
    options: dict[str, Any] | None = None,
    wait_seconds: float = WAIT_SECONDS,
) -> Answer:
    """Ask for something and wait until it is true. Raises what the answer says, TimedOut or NotRunning."""
    wish = send(workspace, verb, job, options, wait_seconds)
    answer = _await_answer(workspace, wish, wait_seconds)
    if answer.done:
        return answer
    kind = ERRORS.get(Exit(answer.exit), DaemonError) if answer.exit in list(Exit) else DaemonError
    raise kind(answer.message, answer.remedy or "training_controller status shows what goes on")


def send(
    workspace: Workspace,
    verb: str,
    job: str | None = None,
    options: dict[str, Any] | None = None,
    lives_seconds: float = WAIT_SECONDS,
) -> Wish:
    """Ask for something without waiting. A wish that nobody took up within its life is void."""
    expires = datetime.now(UTC) + timedelta(seconds=lives_seconds)
    wish = Wish(
        id=f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}-{secrets.token_hex(3)}",
        verb=verb,
        job=job,
        options=options or {},
        made_at=now(),
        expires_at=expires.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )
    files.make_folder(workspace.wishes)
    wish.save(workspace.wishes / f"{wish.id}.json")
    return wish


def _await_answer(workspace: Workspace, wish: Wish, wait_seconds: float) -> Answer:
    path = workspace.wishes / f"{wish.id}.answer.json"
    end = time.monotonic() + wait_seconds
    grace_ends = time.monotonic() if not locks.is_locked(workspace.daemon_lock) else None
    while (answer := Answer.load(path)) is None:
        if locks.is_locked(workspace.daemon_lock):
            grace_ends = None
        elif grace_ends is None:
            grace_ends = time.monotonic() + GRACE_SECONDS
        elif time.monotonic() >= grace_ends:
            _obey_once(workspace, wish, max(1.0, end - time.monotonic()))
            grace_ends = None
        if time.monotonic() >= end:
            raise _too_late(workspace, wish, wait_seconds)
        time.sleep(POLL_SECONDS)
    return answer


def _obey_once(workspace: Workspace, wish: Wish, wait_seconds: float) -> None:
    """Let a daemon that runs for one round obey. Raises NotRunning where it leaves the wish unanswered."""
    root = str(workspace.root)
    command = [sys.executable, "-P", "-m", "daemon.cli.training_daemon", "--base-dir", root, "run", "--once"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=wait_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise _too_late(workspace, wish, wait_seconds) from None
    answered = (workspace.wishes / f"{wish.id}.answer.json").exists()
    if answered or done.returncode == Exit.LOCKED:  # locked: a daemon has come meanwhile, and it will obey
        return
    # It was said that this was not done, so it must not be done later.
    files.remove(workspace.wishes / f"{wish.id}.json")
    said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()
    raise NotRunning(
        f"No daemon runs, and one started for this alone ended with exit code {done.returncode}: {said[-1]}",
        start_command(workspace),
    )


def _too_late(workspace: Workspace, wish: Wish, wait_seconds: float) -> TimedOut:
    status = views.status(workspace)["status"]
    return TimedOut(
        f"{wish.verb} was asked for, but was not true after {wait_seconds:g} s; the daemon's state is: {status}.",
        "training_controller status shows when it is; --timeout SECONDS waits longer",
    )


def _find_soon(workspace: Workspace, text: str, came: bool) -> str | None:
    """The job that is meant; None for a file that came to the inbox and is being read, NotFound for any other."""
    try:
        return views.find(workspace, text)
    except NotFound:
        if came:
            return None
        raise


def start_command(workspace: Workspace) -> str:
    """What to type to start the daemon of this workspace."""
    return f"start the daemon with: training_daemon --base-dir {workspace.root}"


def await_end(workspace: Workspace, text: str, wait_seconds: float | None) -> dict[str, Any]:
    """Wait until a job has ended, however it ends; also for a file that still lies in the inbox."""
    started = alive = time.monotonic()
    job_id, came = None, False
    while True:
        came = came or text in views.inbox(workspace)
        job_id = job_id or _find_soon(workspace, text, came)
        if job_id and views.has_ended(workspace, job_id):
            return views.job(workspace, job_id)
        if views.daemon_runs(workspace):
            alive = time.monotonic()
        if time.monotonic() - alive > ALONE_SECONDS:
            raise NotRunning(f"{text} has not ended, and no daemon runs.", start_command(workspace))
        if wait_seconds is not None and time.monotonic() - started > wait_seconds:
            raise TimedOut(
                f"{text} has not ended after {wait_seconds:g} s.", f"training_queue show {text} says where it is"
            )
        time.sleep(POLL_SECONDS)


# ---- files for the inbox ----


def drop(workspace: Workspace, source: Path, sidecar: dict[str, Any]) -> str:
    """Put a copy of `source` into the inbox, its sidecar first; never over another file. Returns its name there."""
    check_source(workspace, source)
    files.make_folder(workspace.inbox)
    copy = _beside(workspace, "data")
    try:
        files.copy(source, copy)
        return _place(workspace, copy, source.name.lstrip("."), sidecar)
    finally:
        files.remove(copy)


def find_after(workspace: Workspace, text: str) -> str:
    """The job that a file is to be trained after; a file that still lies in the inbox is named as it is."""
    return _find_soon(workspace, text, text in views.inbox(workspace)) or text


def check_source(workspace: Workspace, source: Path) -> None:
    """Refuse what the inbox would leave alone, with the reason."""
    if not source.exists():
        raise NotFound(f"There is no file {source}.", "check the name; quote it if it has blanks")
    if not source.is_file():
        raise UsageError(f"{source} is not a regular file.", "name the data files one by one")
    if source.name.lower().endswith(UNFINISHED_SUFFIXES + SIDECAR_SUFFIXES) or not source.name.strip("."):
        raise UsageError(f"{source.name} is not named like data: the inbox leaves such files alone.", "rename it")
    if source.resolve().parent == workspace.inbox:
        raise Refused(f"{source.name} lies in the inbox already.", "training_queue list shows what became of it")


def _beside(workspace: Workspace, kind: str) -> Path:
    """A name in the inbox that the daemon leaves alone."""
    return workspace.inbox / f".{kind}.{os.getpid()}.{secrets.token_hex(3)}{files.TEMPORARY_SUFFIX}"


def _place(workspace: Workspace, copy: Path, name: str, sidecar: dict[str, Any]) -> str:
    stem, dot, ending = name.partition(".")
    attempt = 1
    while True:
        free = name if attempt == 1 else f"{stem}-{attempt}{dot}{ending}"
        attempt += 1
        if os.path.lexists(workspace.inbox / free) or not (sidecar_path := _place_sidecar(workspace, free, sidecar)):
            continue
        try:
            files.place(copy, workspace.inbox / free)
            return free
        except FileExistsError:  # somebody was quicker with this name: the sidecar must not be read for his file
            if sidecar:
                files.remove(sidecar_path)


def _place_sidecar(workspace: Workspace, name: str, sidecar: dict[str, Any]) -> Path | None:
    """Where the sidecar of this file lies, or None where another file's sidecar has that name."""
    target = (workspace.inbox / name).with_suffix(".yaml")
    if not sidecar:
        return target
    copy = _beside(workspace, "sidecar")
    files.write(copy, yaml.safe_dump(sidecar))
    try:
        files.place(copy, target)
    except FileExistsError:
        return None
    finally:
        files.remove(copy)
    return target


def await_taken(
    workspace: Workspace, names: list[str], known: set[str], wait_seconds: float
) -> dict[str, dict[str, Any] | None]:
    """The jobs made of these files in the inbox, read and reported where time allows; None: not taken in so far."""
    end = time.monotonic() + wait_seconds
    while True:
        taken = {name: views.taken_in(workspace, name, known) for name in names}
        settled = all(job and views.is_judged(workspace, job) for job in taken.values())
        if settled or time.monotonic() >= end or not views.daemon_runs(workspace):
            return taken
        time.sleep(POLL_SECONDS)
