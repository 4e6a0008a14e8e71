"""Wishes -> deeds: pause, resume, stop, skip, those for queue and gate; each answered when true, never twice."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.core import files
from daemon.core.attempts import Control
from daemon.core.errors import DaemonError, Exit
from daemon.core.records import Answer, State, Wish
from daemon.jobs import store
from daemon.jobs.store import Found
from daemon.models import checkpoints
from daemon.service import approving, asking, queue_deeds, skipping
from daemon.service.answering import answer_of, later, meant, no, paths, read, unreadable, yes
from daemon.service.context import Context

ANSWERS_KEPT = timedelta(hours=1)


async def obey(context: Context) -> None:
    """Bring every open wish one step on; a wish stays a file until it is true and answered."""
    _obey_stop_file(context)
    for path in sorted(context.workspace.wishes.iterdir()):
        if path.name.endswith(".answer.json") or path.name.startswith("."):
            _forget_old(path)
            continue
        if answer_of(path).exists():
            files.remove(path)  # a crash came between answer and removal: what was done must not be done again
            continue
        wish = read(path)
        answer = await _answer(context, wish) if wish else unreadable(path)
        if answer is not None:
            answer.save(answer_of(path))
            files.remove(path)
            context.tracker.event("wish", f"{wish.verb if wish else path.name}: {answer.message}", done=answer.done)
    if context.desired.stop and ready_to_end(context):
        context.ending = True
    _tell_worker(context)


def open_wishes(context: Context) -> bool:
    """Whether any wish waits for its answer."""
    return bool(paths(context))


def answer_stops(context: Context) -> None:
    """The daemon ends, for whatever reason: so what was wished for is true, and the next one must not end for it."""
    for path in paths(context):
        wish = read(path)
        if wish is not None and wish.verb == "stop":
            yes(wish, "the daemon ends").save(answer_of(path))
            files.remove(path)


async def _answer(context: Context, wish: Wish) -> Answer | None:
    if _expired(wish) and not _begun(context, wish):
        return no(wish, "the wish had expired before it could be obeyed", "ask again", Exit.TIMED_OUT)
    deed = DEEDS.get(wish.verb)
    if deed is None:
        return no(
            wish, f"{wish.verb} is not understood by this daemon", "restart the daemon after an upgrade", Exit.USAGE
        )
    context.begun.add(wish.id)
    try:
        return await deed(context, wish)
    except DaemonError as error:
        return no(wish, error.message, error.remedy, error.exit)


def _expired(wish: Wish) -> bool:
    try:
        return datetime.fromisoformat(wish.expires_at) < datetime.now(UTC)
    except (ValueError, TypeError):
        return True  # no time of ours: nobody waits for the answer


def _begun(context: Context, wish: Wish) -> bool:
    """Whether a wish is being obeyed, perhaps since before a restart; then it cannot expire any more."""
    desired = context.desired
    wished = {"pause": desired.paused, "stop": desired.stop is not None, "skip": desired.skip == wish.job}
    return wish.id in context.begun or wished.get(wish.verb, False) or approving.gave(context, wish)


# ---- deeds: each returns None while it is not true yet, and may be called again ----


async def pause(context: Context, wish: Wish) -> Answer | None:
    if later(context, wish, "resume"):
        return no(wish, "a later resume has taken the pause back", "pause again")
    if not context.desired.paused:
        context.wish(paused=True, reason="user")
    if _busy(context):
        return None
    return yes(wish, f"paused{await _saved(context)}", **await _facts(context))


async def resume(context: Context, wish: Wish) -> Answer | None:
    ends = "; the daemon is about to end, as asked, and goes on at its next start" if context.desired.stop else ""
    found = store.processing(context.workspace)
    waits = asking.waiting_in_words(context.workspace, found)
    if not context.desired.paused:
        return yes(wish, f"nothing was paused; {waits or 'the daemon takes the next file by itself'}{ends}")
    context.wish(paused=False, reason=None)
    if waits:
        return yes(wish, f"resumed; {waits}{ends}")
    if found is None:
        return yes(wish, f"resumed; the next file is taken when one waits{ends}")
    facts = await _facts(context)
    where = f"after update {facts['job_step']} of {facts['job_total_steps']}" if facts else "from its first row"
    return yes(wish, f"resumed; {found.job.file} goes on {where}{ends}", **facts)


async def stop(context: Context, wish: Wish) -> Answer | None:
    now_ = bool(wish.options.get("now"))
    if context.desired.stop is None or (now_ and context.desired.stop == "after_file"):
        context.wish(stop="now" if now_ else "after_file")
    if not ready_to_end(context):
        return None
    context.ending = True
    return yes(wish, f"the daemon ends{await _saved(context)}", **await _facts(context))


async def skip(context: Context, wish: Wish) -> Answer | None:
    found, keep = meant(context, wish), bool(wish.options.get("keep"))
    if found.state is not State.PROCESSING:
        return _not_in_training(context, wish, found)
    if later(context, wish, "skip"):
        return None  # that one says what becomes of it; then this one is answered too
    if keep and (waits := asking.waiting_in_words(context.workspace, found)):
        return yes(wish, f"no more of it is trained, and {waits}", job=found.id)
    obstacle = skipping.obstacle(context, found, _busy(context)) if keep else None
    if obstacle:
        if context.once and context.desired.skip == found.id:
            context.wish(skip=None, keep=False)  # it is said that this is not done, so it must not be done later
        return no(wish, *obstacle)
    context.wish(skip=found.id, keep=keep)
    return None


def _not_in_training(context: Context, wish: Wish, found: Found) -> Answer:
    if context.desired.skip == found.id:
        context.wish(skip=None, keep=False)
    if found.state is State.SKIPPED:
        part = checkpoints.part_in_model(context.workspace, found.id)
        model = f"the model contains {part.steps} of its updates" if part.steps else "the model is as it was before it"
        return yes(wish, f"{found.job.file} is skipped; {model}", job=found.id, reason=found.job.reason)
    if found.state is State.COMPLETED:
        return no(
            wish, f"{found.job.file} is already completed; the model contains it", "nothing is left to be skipped"
        )
    if found.state is State.REJECTED:
        return no(wish, f"{found.job.file} is rejected: {found.job.reason}", found.job.remedy or "", Exit.PROBLEM)
    return no(
        wish,
        f"{found.job.file} is not being trained: it is {found.state}",
        "training_queue remove takes a waiting job out",
    )


Deed = Callable[[Context, Wish], Awaitable[Answer | None]]
DEEDS: dict[str, Deed] = {
    "pause": pause,
    "resume": resume,
    "stop": stop,
    "skip": skip,
    "approve": approving.approve,
    "reject": approving.reject,
    "set_priority": queue_deeds.set_priority,
    "remove": queue_deeds.remove,
    "retry": queue_deeds.retry,
}


# ---- help ----


def ready_to_end(context: Context) -> bool:
    """Whether a stop may end the daemon now: no worker, and none to come."""
    if _busy(context):
        return False
    trains = not (context.desired.paused or context.blocking or context.once)
    waits_for_file = context.desired.stop == "after_file" and trains
    return not (waits_for_file and store.processing(context.workspace))


def _busy(context: Context) -> bool:
    """Whether a worker or a judge lives, or an attempt has been handed over and may still come to life."""
    if context.runner.alive() or context.judge.running:
        return True
    found = store.processing(context.workspace)
    attempt = context.workspace.run(found.id).newest_attempt() if found else None
    return attempt is not None and context.runner.ending(attempt) is None


def _tell_worker(context: Context) -> None:
    """Pass on to the running attempt what is wished for, once."""
    attempt = context.runner.attempt()
    if attempt is None or attempt.control.exists() or context.runner.other_protocol is not None:
        return
    desired = context.desired
    if desired.skip == attempt.job:
        Control(action="keep" if desired.keep else "drop", reason="skip").save(attempt.control)
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


def _forget_old(path: Path) -> None:
    """Answers that were read long ago, and what faces that died left half-written."""
    with contextlib.suppress(FileNotFoundError):  # a temporary file that has just got its name
        age = datetime.now(UTC) - datetime.fromtimestamp(path.stat().st_mtime, UTC)
        if age > ANSWERS_KEPT:
            files.remove(path)
