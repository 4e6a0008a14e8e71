"""What is wished for the queue: set-priority, remove, retry. Each may be done again after a crash before its answer."""

from pathlib import Path

from daemon.core import files
from daemon.core.errors import Exit, Refused
from daemon.core.records import WAITING_STATES, Answer, Job, State, Wish
from daemon.jobs import store
from daemon.jobs.store import Found
from daemon.models import checkpoints, trash
from daemon.service import asking, assigning
from daemon.service.answering import meant, no, yes
from daemon.service.context import Context


async def set_priority(context: Context, wish: Wish) -> Answer | None:
    found, state = meant(context, wish), wish.options.get("priority")
    if state not in WAITING_STATES:
        return no(wish, f"{state} is not a priority", "high, normal or low", Exit.USAGE)
    state = State(state)
    if found.state not in WAITING_STATES:
        return no(wish, f"{found.job.file} does not wait: it is {found.state}", "only waiting jobs have a priority")
    if found.state is not state:
        store.move(context.workspace, found, state)
    waiting = [name for kind in WAITING_STATES for name in store.names(context.workspace, kind)]
    place = waiting.index(found.folder.name) + 1
    return yes(wish, f"{found.job.file} has priority {state}; it is #{place} in the queue", job=found.id)


async def remove(context: Context, wish: Wish) -> Answer | None:
    gone = sorted(context.workspace.trash.glob(f"*-{wish.job}/{wish.job}"))
    if gone and not any(wish.job in store.names(context.workspace, state) for state in State):
        return _removed(context, wish, gone[-1].parent, gone[-1])  # a crash came before the answer
    found = meant(context, wish)
    if found.state is State.PROCESSING:
        waits = asking.waiting_in_words(context.workspace, found)
        return no(wish, waits or f"{found.job.file} is being trained", "training_controller skip ends it first")
    if found.state is State.COMPLETED or checkpoints.part_in_model(context.workspace, found.id).steps:
        return no(
            wish,
            f"{found.job.file} is in the model; its data is kept",
            "what was trained stays, so that the model can be audited",
        )
    grave = trash.discard(context.workspace, found.folder, "removed by hand")
    return _removed(context, wish, grave, grave / found.folder.name)


def _removed(context: Context, wish: Wish, grave: Path, folder: Path) -> Answer:
    job, where = Job.load(folder / store.RECORD), grave.relative_to(context.workspace.root)
    assert job, "it lay in the queue"
    return yes(wish, f"{job.file} is taken out; it lies in {where} and can be brought back", job=job.id)


async def retry(context: Context, wish: Wish) -> Answer | None:
    everything = wish.options.get("all_failed")
    again = store.jobs(context.workspace, State.FAILED) if everything else [meant(context, wish)]
    for found in again:
        _put_back(context, found, bool(wish.options.get("again")))
    names = ", ".join(f.job.file for f in again)
    return yes(wish, f"waiting again: {names}" if again else "no failed job to try again", jobs=[f.id for f in again])


def _put_back(context: Context, found: Found, again: bool) -> None:
    if found.state is State.COMPLETED:
        remedy = f"to train it once more on purpose: training_queue add {found.job.file} --again"
        raise Refused(f"{found.id} is completed: the model contains it.", remedy)
    if found.state is State.PROCESSING:
        waits = asking.waiting_in_words(context.workspace, found)
        remedy = (
            "training_controller skip ends it" if waits else "it goes on by itself; training_controller skip ends it"
        )
        raise Refused(waits or f"{found.job.file} is being trained.", remedy)
    if found.state in WAITING_STATES:
        return  # it waits already
    if again:
        found = store.Found(found.state, found.folder, found.job.model_copy(update={"again": True}))
    # A file that could not be used is read anew: what was wrong may have been mended, in it or around it.
    files.remove(found.report)
    assigning.thaw(context.workspace, found.id)
    context.read_again(found.id)
    store.move(context.workspace, found, State(found.job.priority))
