"""A damaged or missing `latest`: back to the newest whole model before it, aloud; what that lacks is trained again."""

import asyncio
from pathlib import Path

from daemon.core import files
from daemon.core.errors import DaemonError
from daemon.core.records import State
from daemon.jobs import ledger, store
from daemon.models import checkpoints, trash
from daemon.service.context import Context


async def look_after_model(context: Context, job: str) -> bool:
    """Let `latest` name a whole model before `job` builds on it; whether it had to go back for that.

    Raises DaemonError where there is no whole one.

    Reads every byte of the model; it may take minutes.
    """
    folder, accepted = checkpoints.latest(context.workspace), ledger.accepted(context.workspace)
    if folder is None and not accepted:
        return False
    wrong = (
        await asyncio.to_thread(checkpoints.damage, folder) if folder else "current_model/latest is missing, or no link"
    )
    if wrong is None:
        _notice_other_hands(context, folder, accepted)
        return False
    if await asyncio.to_thread(_goes_on_without, context, folder, job):
        return False
    await _go_back(context, folder, wrong, accepted)
    return True


def _notice_other_hands(context: Context, folder: Path | None, accepted: dict[str, str]) -> None:
    """`latest` may be moved by hand, and may have come from an old copy of the folder; the daemon cannot know."""
    last = list(accepted.values())[-1:]
    if folder and last and last != [folder.name]:
        message = f"current_model/latest names {folder.name}; the model accepted last is {last[0]}."
        remedy = f"nothing, if you moved it; else: ln -sfn {last[0]} current_model/latest"
        context.hold("other_hands", "model", message, remedy, blocks=False)
    else:
        context.clear("other_hands")


async def _go_back(context: Context, folder: Path | None, wrong: str, accepted: dict[str, str]) -> None:
    workspace, name = context.workspace, folder.name if folder else "the accepted model"
    back = await asyncio.to_thread(_newest_whole, context, folder, accepted)
    if back is None:
        raise DaemonError(
            f"The accepted model is damaged, and no whole one before it is left: {name}: {wrong}.",
            "bring the files back from a copy; or, to begin again with the base model, move current_model/ and "
            "runs/ledger.jsonl away",
        )
    undone = _contained_since(folder, back, accepted)
    message = f"{name} is damaged: {wrong}; back to {back.name}, which is whole"
    context.tracker.event("model_damaged", message, undone=undone)
    for found in store.jobs(workspace, State.COMPLETED):
        if found.id in undone:
            files.remove(found.report)  # its tokens are gone too
            store.move(workspace, found, State(found.job.priority))
            context.read_again(found.id)
            words = f"{found.job.file} is trained again: the model that contained it is damaged"
            context.tracker.event("trained_again", words, job=found.id)
    for found in store.jobs(workspace, State.SKIPPED):
        if found.id in undone:
            words = "skipped by hand; what was kept of it was lost with a damaged model"
            found.job.model_copy(update={"reason": words}).save(found.folder / store.RECORD)
            context.tracker.event("part_lost", f"{found.job.file}: {words}", job=found.id)
    ledger.undo(workspace, undone, message)
    checkpoints.accept(workspace, back)
    if folder in checkpoints.every(workspace):
        trash.discard(workspace, folder, f"damaged: {wrong}")


def _goes_on_without(context: Context, folder: Path | None, job: str) -> bool:
    """Whether the job has a whole checkpoint of its own that contains the damaged model already."""
    if folder is None or checkpoints.read(folder) is None:
        return False
    mine = checkpoints.of_job(context.workspace, job, checkpoints.parent_of(folder, job))
    above = [f for f in mine if checkpoints.step_of(f) > checkpoints.step_of(folder)]
    return any(checkpoints.damage(f) is None for f in above)


def _newest_whole(context: Context, folder: Path | None, accepted: dict[str, str]) -> Path | None:
    """The newest model accepted before the damaged one, every byte of it verified."""
    everything = checkpoints.every(context.workspace)
    older = everything[: everything.index(folder)] if folder in everything else everything
    for candidate in reversed(older):
        manifest = checkpoints.read(candidate)
        if manifest and accepted.get(manifest.job) == candidate.name and not checkpoints.damage(candidate):
            return candidate
    return None


def _contained_since(folder: Path | None, back: Path, accepted: dict[str, str]) -> list[str]:
    """The jobs that the damaged model contains and the one before does not."""
    now, before = checkpoints.read(folder) if folder else None, checkpoints.read(back)
    assert before, "verified"
    if now is None:
        return list(accepted)[list(accepted).index(before.job) + 1 :]
    # An ancestor's lineage is the beginning of the later one's; a job that was kept and tried again has two entries.
    return list(dict.fromkeys(trained.job for trained in now.lineage[len(before.lineage) :]))
