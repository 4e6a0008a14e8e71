"""Which waiting job may start: a pure rule over a job, the time, and the job that it is to be trained after."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from daemon.core.paths import Workspace
from daemon.core.records import WAITING_STATES, Job, State
from daemon.jobs import store
from daemon.jobs.store import Found


@dataclass(frozen=True)
class Standing:
    """Whether a waiting job may start; if not, what it waits for, or why it never will."""

    kind: Literal["ready", "waits", "never"]
    words: str = ""
    remedy: str = ""


READY = Standing("ready")


def judge(job: Job, now: str, earlier: State | None) -> Standing:
    """`earlier` is the state of the job named by `after`; None where no such job is there."""
    if job.not_before and now < job.not_before:
        return Standing("waits", f"until {job.not_before}")
    if job.after is None or earlier is State.COMPLETED:
        return READY
    if earlier is None and not store.ID.match(job.after):
        return Standing("waits", f"for {job.after}, which is not there yet")
    if earlier is None:
        return _never(job, f"{job.after}, after which this file was to be trained, was removed")
    if earlier in (*WAITING_STATES, State.PROCESSING):
        return Standing("waits", f"for {job.after} to be completed")
    return _never(job, f"{job.after}, after which this file was to be trained, is {earlier}")


def _never(job: Job, reason: str) -> Standing:
    remedy = f"when {job.after} is completed: training_queue retry {job.id}; or drop the file again without after"
    return Standing("never", reason, remedy)


def standing(workspace: Workspace, found: Found, now: str) -> Standing:
    """The rule, with the disk looked at where it needs to be."""
    earlier = find_after(workspace, found.job) if found.job.after else None
    return judge(found.job, now, earlier[0] if earlier else None)


def find_after(workspace: Workspace, job: Job) -> tuple[State, str] | None:
    """Where the job lies that this one is to be trained after, and its id. Opens only records that may be it."""
    wanted = job.after or ""
    exact = [(state, wanted) for state in State if (workspace.state(state) / wanted / store.RECORD).is_file()]
    if exact or (store.ID.match(wanted) and _is_whole(wanted)):
        return exact[0] if exact else None
    candidates = sorted(_candidates(workspace, wanted, job), key=lambda pair: pair[1])
    return candidates[-1] if candidates else None


def _is_whole(text: str) -> bool:
    """Whether this can be nothing but an id: what comes behind its number is there."""
    return len(text) > len("20260131T120000-0001-")


def _candidates(workspace: Workspace, wanted: str, job: Job) -> Iterator[tuple[State, str]]:
    for state in State:
        for name in store.names(workspace, state):
            if name == job.id:
                continue
            if name.startswith(wanted):
                yield state, name
            elif name.endswith(f"-{store.slug(wanted)}"):
                found = store.look(workspace, state, name)
                if found is not None and found.job.file == wanted:
                    yield state, name
