"""Pause, resume, stop, skip, set-priority, remove, retry -> deeds; each answered when it is true, never twice."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.core import files
from daemon.core.attempts import Control
from daemon.core.errors import DaemonError, Exit, Refused
from daemon.core.records import WAITING_STATES, Answer, State, Wish, now
from daemon.jobs import store
from daemon.jobs.store import Found
from daemon.models import checkpoints, trash
from daemon.service.context import Context

ANSWERS_KEPT = timedelta(hours=1)


async def obey(context: Context) -> None:
    """Bring every open wish one step on; a wish stays a file until it is true and answered."""
    _obey_stop_file(context)
    for path in sorted(context.workspace.wishes.iterdir()):
        if path.name.endswith(".answer.json") or path.name.startswith("."):
            _forget_old(path)
            continue
        wish = _read(path)
        answer = await _answer(context, wish) if wish else _unreadable(path)
        if answer is not None:
            answer.save(path.with_name(f"{path.stem}.answer.json"))
            files.remove(path)
            context.tracker.event("wish", f"{wish.verb if wish else path.name}: {answer.message}", done=answer.done)
    if context.desired.stop and ready_to_end(context):
        context.ending = True
    _tell_worker(context)


def open_wishes(context: Context) -> bool:
    """Whether any wish waits for its answer."""
    return any(not p.name.endswith(".answer.json") for p in context.workspace.wishes.glob("*.json"))


async def _answer(context: Context, wish: Wish) -> Answer | None:
    expired = datetime.fromisoformat(wish.expires_at) < datetime.now(UTC)
    if expired and wish.id not in context.begun:
        return _no(wish, "the wish had expired before it could be obeyed", "ask again", Exit.TIMED_OUT)
    deed = DEEDS.get(wish.verb)
    if deed is None:
        return _no(
            wish, f"{wish.verb} is not understood by this daemon", "restart the daemon after an upgrade", Exit.USAGE
        )
    context.begun.add(wish.id)
    try:
        return await deed(context, wish)
    except DaemonError as error:
        return _no(wish, error.message, error.remedy, error.exit)


# ---- deeds: each returns None while it is not true yet, and may be called again ----


async def pause(context: Context, wish: Wish) -> Answer | None:
    if not context.desired.paused:
        context.wish(paused=True, reason="user")
    if context.runner.alive() or _starting(context):
        return None
    return _yes(wish, f"paused{await _saved(context)}", **await _facts(context))


async def resume(context: Context, wish: Wish) -> Answer | None:
    if not context.desired.paused:
        return _yes(wish, "nothing was paused; the daemon takes the next file by itself")
    context.wish(paused=False, reason=None)
    found = store.processing(context.workspace)
    if found is None:
        return _yes(wish, "resumed; the next file is taken when one waits")
    facts = await _facts(context)
    where = f"after update {facts['job_step']} of {facts['job_total_steps']}" if facts else "from its first row"
    return _yes(wish, f"resumed; {found.job.file} goes on {where}", **facts)


async def stop(context: Context, wish: Wish) -> Answer | None:
    now_ = bool(wish.options.get("now"))
    if context.desired.stop is None or (now_ and context.desired.stop == "after_file"):
        context.wish(stop="now" if now_ else "after_file")
    if not ready_to_end(context):
        return None
    context.ending = True
    return _yes(wish, f"the daemon ends{await _saved(context)}", **await _facts(context))


async def skip(context: Context, wish: Wish) -> Answer | None:
    found = store.find(context.workspace, wish.job or "")
    if found.state is State.SKIPPED:
        return _yes(wish, f"{found.job.file} is skipped; the model is as it was before it", job=found.id)
    if found.state is not State.PROCESSING:
        context.wish(skip=None)
        return _no(
            wish,
            f"{found.job.file} is not being trained: it is {found.state}",
            "training_queue remove takes a waiting job out",
        )
    context.wish(skip=found.id)
    return None


async def set_priority(context: Context, wish: Wish) -> Answer | None:
    found = store.find(context.workspace, wish.job or "")
    state = State(wish.options.get("priority", ""))
    if state not in WAITING_STATES:
        return _no(wish, f"{state} is not a priority", "high, normal or low", Exit.USAGE)
    if found.state not in WAITING_STATES:
        return _no(wish, f"{found.job.file} does not wait: it is {found.state}", "only waiting jobs have a priority")
    if found.state is not state:
        store.move(context.workspace, found, state)
    waiting = [name for state_ in WAITING_STATES for name in store.names(context.workspace, state_)]
    place = waiting.index(found.folder.name) + 1
    return _yes(wish, f"{found.job.file} has priority {state}; it is #{place} in the queue", job=found.id)


async def remove(context: Context, wish: Wish) -> Answer | None:
    found = store.find(context.workspace, wish.job or "")
    if found.state is State.PROCESSING:
        return _no(wish, f"{found.job.file} is being trained", "training_controller skip ends it first")
    if found.state is State.COMPLETED:
        return _no(
            wish,
            f"{found.job.file} is in the model; its data is kept",
            "completed data stays, so that the model can be audited",
        )
    grave = trash.discard(context.workspace, found.folder, "removed by hand")
    where = grave.relative_to(context.workspace.root)
    return _yes(wish, f"{found.job.file} is taken out; it lies in {where} and can be brought back", job=found.id)


async def retry(context: Context, wish: Wish) -> Answer | None:
    if wish.options.get("all_failed"):
        again = store.jobs(context.workspace, State.FAILED)
    else:
        again = [store.find(context.workspace, wish.job or "")]
    for found in again:
        _put_back(context, found, bool(wish.options.get("again")))
    names = ", ".join(f.job.file for f in again)
    return _yes(wish, f"waiting again: {names}" if again else "no failed job to try again", jobs=[f.id for f in again])


def _put_back(context: Context, found: Found, again: bool) -> None:
    if found.state is State.COMPLETED:
        remedy = f"to train it once more on purpose: training_queue add {found.job.file} --again"
        raise Refused(f"{found.id} is completed: the model contains it.", remedy)
    if again:
        found = store.Found(found.state, found.folder, found.job.model_copy(update={"again": True}))
    # A file that could not be used is read anew: what was wrong may have been mended, in it or around it.
    files.remove(found.report)
    context.read_again(found.id)
    store.move(context.workspace, found, State(found.job.priority))


Deed = Callable[[Context, Wish], Awaitable[Answer | None]]
DEEDS: dict[str, Deed] = {
    "pause": pause,
    "resume": resume,
    "stop": stop,
    "skip": skip,
    "set_priority": set_priority,
    "remove": remove,
    "retry": retry,
}


# ---- help ----


def ready_to_end(context: Context) -> bool:
    """Whether a stop may end the daemon now: no worker, and none to come."""
    if context.runner.alive() or _starting(context):
        return False
    waits_for_file = context.desired.stop == "after_file" and not context.desired.paused and context.blocking is None
    return not (waits_for_file and store.processing(context.workspace))


def _starting(context: Context) -> bool:
    """Whether an attempt has been handed over and may still come to life."""
    found = store.processing(context.workspace)
    attempt = context.workspace.run(found.id).newest_attempt() if found else None
    return attempt is not None and context.runner.ending(attempt) is None


def _tell_worker(context: Context) -> None:
    """Pass on to the running attempt what is wished for, once."""
    attempt = context.runner.attempt()
    if attempt is None or attempt.control.exists():
        return
    desired = context.desired
    if desired.skip == attempt.job:
        Control(action="drop", reason="skip").save(attempt.control)
    elif desired.paused:
        Control(action="pause", reason=desired.reason or "user").save(attempt.control)
    elif desired.stop == "now":
        Control(action="stop", reason="stop --now").save(attempt.control)


def _obey_stop_file(context: Context) -> None:
    if context.workspace.stop_file.exists() and context.desired.stop != "now":
        context.tracker.event("wish", ".stop was found: checkpoint and end")
        context.wish(stop="now")


async def _saved(context: Context) -> str:
    facts = await _facts(context)
    if not facts:
        return ""
    verified = "verified" if facts["verified"] else f"not usable: {facts['damage']}"
    where = f"{facts['file']}, {facts['job_step']} of its {facts['job_total_steps']} updates"
    return f" at step {facts['step']} ({where}); {facts['checkpoint']} is {verified}"


async def _facts(context: Context) -> dict[str, Any]:
    """The newest checkpoint of the job in processing, verified now."""
    found = store.processing(context.workspace)
    folder = newest_of(context, found.id) if found else None
    manifest = checkpoints.read(folder) if folder else None
    if not found or not folder or not manifest:
        return {}
    wrong = await asyncio.to_thread(checkpoints.damage, folder)
    return {
        "file": found.job.file,
        "step": manifest.step,
        "job_step": manifest.job_step,
        "job_total_steps": manifest.job_total_steps,
        "checkpoint": str(folder.relative_to(context.workspace.root)),
        "bytes": sum(seal.bytes for seal in manifest.files.values()),
        "verified": wrong is None,
        "damage": wrong,
    }


def newest_of(context: Context, job: str) -> Path | None:
    mine = [f for f in checkpoints.every(context.workspace) if (m := checkpoints.read(f)) and m.job == job]
    return mine[-1] if mine else None


def _read(path: Path) -> Wish | None:
    try:
        return Wish.load(path)
    except (ValueError, OSError):
        return None


def _unreadable(path: Path) -> Answer:
    return Answer(
        id=path.stem, done=False, message="the wish could not be read", remedy="ask again", exit=Exit.USAGE, at=now()
    )


def _yes(wish: Wish, message: str, **facts: Any) -> Answer:
    return Answer(id=wish.id, done=True, message=message, facts=facts, at=now())


def _no(wish: Wish, message: str, remedy: str, code: Exit = Exit.REFUSED) -> Answer:
    return Answer(id=wish.id, done=False, message=message, remedy=remedy, exit=code, at=now())


def _forget_old(path: Path) -> None:
    """Answers that were read long ago, and what faces that died left half-written."""
    with contextlib.suppress(FileNotFoundError):  # a temporary file that has just got its name
        age = datetime.now(UTC) - datetime.fromtimestamp(path.stat().st_mtime, UTC)
        if age > ANSWERS_KEPT:
            files.remove(path)
