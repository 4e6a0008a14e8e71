"""Each step of a job's life dies or fails at each call to the disk in turn; nothing is lost and nothing doubled."""

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daemon.core import config, files
from daemon.core.paths import Workspace
from daemon.core.records import Desired, Job, State
from daemon.data import intake
from daemon.jobs import inbox, ledger, store
from daemon.models import checkpoints, trash
from daemon.service import settling
from daemon.service.context import Context
from daemon.service.runner import Runner
from daemon.service.tracker import Tracker
from tests import helpers_data
from tests.helpers_disk import disk_with, every_death, every_failure, recorded, without_waiting
from tests.helpers_jobs import copies_of_data, ledger_line, make_workspace, put_checkpoint, put_job, states_of

SETTINGS = "priority: high"


def open_context(workspace: Workspace) -> Context:
    """As a daemon that has just started sees the workspace."""
    settings, _ = config.load(workspace.config, {})
    return Context(workspace, settings, Runner(workspace, lambda: None), Tracker(workspace), lambda: None)


def the_job(workspace: Workspace) -> store.Found:
    """The only one, in whatever state; its bytes are there once, its record can be read."""
    found = store.jobs(workspace)
    assert len(found) == 1 and states_of(workspace, found[0].id) == [found[0].state]
    assert copies_of_data(workspace) == 1
    return found[0]


@dataclass(frozen=True)
class Story:
    """A step: what was there before, the step itself (also its own recovery), what holds at once, and in the end."""

    before: Callable[[Workspace], object]
    step: Callable[[Workspace], object]
    at_once: Callable[[Workspace], object]
    in_the_end: Callable[[Workspace], object]


# ---- a move ----


def move_on(workspace: Workspace) -> None:
    found = the_job(workspace)
    if found.state is State.PROCESSING:
        store.move(workspace, found, State.FAILED, "because", "do this")


def has_failed(workspace: Workspace) -> None:
    found = the_job(workspace)
    assert (found.state, found.job.reason, found.job.remedy) == (State.FAILED, "because", "do this")


MOVE = Story(lambda w: put_job(w, State.PROCESSING), move_on, the_job, has_failed)

# ---- taking in ----


def drop_with_settings(workspace: Workspace) -> None:
    (workspace.inbox / "x.yaml").write_text(SETTINGS)
    found = put_job(workspace, State.LOW)  # made elsewhere, for its bytes alone
    found.data.rename(workspace.inbox / "x.jsonl")
    files.remove(found.folder)


def take_all_in(workspace: Workspace) -> None:
    """As a start does it, and then a round of the loop."""
    inbox.finish_taking_in(workspace)
    for item in inbox.dropped(workspace):
        inbox.take_in(workspace, item)


def nothing_is_lost(workspace: Workspace) -> None:
    assert copies_of_data(workspace) == copies_of_data(workspace, SETTINGS.encode()) == 1


def is_taken_in(workspace: Workspace) -> None:
    found = the_job(workspace)
    assert (found.state, found.job.priority) == (State.HIGH, "high")
    assert (found.folder / "sidecar.yaml").read_text() == SETTINGS
    assert list(workspace.inbox.iterdir()) == list(workspace.queue.glob(".*")) == []


TAKE_IN = Story(drop_with_settings, take_all_in, nothing_is_lost, is_taken_in)


def begin_taking_in(workspace: Workspace) -> None:
    """An earlier life got as far as moving the data; another had only written its record."""
    drop_with_settings(workspace)
    begun = workspace.queue / ".20260101T000000-0001-x"
    begun.mkdir()
    job = Job(
        id=begun.name[1:], file="x.jsonl", data="x.jsonl", bytes=1, priority="high", taken_in_at="2026-01-01T00:00:00Z"
    )
    job.save(begun / store.RECORD)
    (workspace.inbox / "x.jsonl").rename(begun / "x.jsonl")
    other = workspace.queue / ".20260101T000000-0002-y"
    other.mkdir()
    job.model_copy(update={"id": other.name[1:], "file": "y.jsonl", "data": "y.jsonl"}).save(other / store.RECORD)


FINISH_TAKING_IN = Story(begin_taking_in, take_all_in, nothing_is_lost, is_taken_in)

# ---- models ----


def two_checkpoints(workspace: Workspace) -> None:
    checkpoints.accept(workspace, put_checkpoint(workspace, 9))
    put_checkpoint(workspace, 10, job="j")


def latest_is_good(workspace: Workspace) -> Path:
    folder = checkpoints.latest(workspace)
    assert folder and checkpoints.damage(folder) is None
    return folder


def latest_has_moved(workspace: Workspace) -> None:
    assert latest_is_good(workspace) == workspace.checkpoint(10)


ACCEPT = Story(two_checkpoints, lambda w: checkpoints.accept(w, w.checkpoint(10)), latest_is_good, latest_has_moved)


def discard(workspace: Workspace) -> None:
    if workspace.checkpoint(10).exists():
        trash.discard(workspace, workspace.checkpoint(10), "test")


def checkpoint_is_whole_once(workspace: Workspace) -> Path:
    (place,) = (f for f in workspace.root.rglob("checkpoint-10") if f.is_dir())
    assert checkpoints.damage(place) is None
    return place


def checkpoint_is_in_the_trash(workspace: Workspace) -> None:
    assert checkpoint_is_whole_once(workspace).is_relative_to(workspace.trash)
    latest_is_good(workspace)


DISCARD = Story(two_checkpoints, discard, checkpoint_is_whole_once, checkpoint_is_in_the_trash)

# ---- the ledger and the end of a job ----


def earlier_line(workspace: Workspace) -> None:
    ledger.record(workspace, ledger_line(job="earlier"))


def jobs_in_ledger(workspace: Workspace) -> list[str]:
    found = [line.job for line in ledger.lines(workspace)]
    assert len(found) == len(set(found))
    return found


def both_lines(workspace: Workspace) -> None:
    assert jobs_in_ledger(workspace) == ["earlier", "later"]


RECORD = Story(earlier_line, lambda w: ledger.record(w, ledger_line(job="later")), jobs_in_ledger, both_lines)


def end(workspace: Workspace) -> None:
    found = the_job(workspace)
    if found.state is State.PROCESSING:
        settling.end(open_context(workspace), found, State.REJECTED, "because", None)


def at_most_one_line(workspace: Workspace) -> None:
    the_job(workspace)
    jobs_in_ledger(workspace)


def has_ended(workspace: Workspace) -> None:
    found = the_job(workspace)
    assert (found.state, jobs_in_ledger(workspace)) == (State.REJECTED, [found.id])
    kept = ["data.jsonl", store.RECORD, store.REPORT]
    assert sorted(f.name for f in found.folder.iterdir() if f not in files.leftovers(found.folder)) == kept
    assert not [f for f in found.folder.rglob("*") if f.name == "tokens.bin"], "the token cache goes with the job's end"


END = Story(lambda w: put_job(w, State.PROCESSING), end, at_most_one_line, has_ended)


def skipping(workspace: Workspace) -> None:
    checkpoints.accept(workspace, put_checkpoint(workspace, 9))
    found = put_job(workspace, State.PROCESSING)
    put_checkpoint(workspace, 10, job=found.id)
    Desired(skip=found.id).save(workspace.desired)


def skip(workspace: Workspace) -> None:
    context, found = open_context(workspace), the_job(workspace)
    if context.desired.skip == found.id and found.state is State.PROCESSING:
        settling.skip(context, found)
    asyncio.run(settling.settle(context))


def still_wished_or_done(workspace: Workspace) -> None:
    checkpoint_is_whole_once(workspace)
    latest_is_good(workspace)
    assert open_context(workspace).desired.skip or the_job(workspace).state is State.SKIPPED


def is_skipped(workspace: Workspace) -> None:
    checkpoint_is_in_the_trash(workspace)
    found = the_job(workspace)
    assert (found.state, jobs_in_ledger(workspace)) == (State.SKIPPED, [found.id])
    assert open_context(workspace).desired.skip is None, "else a retry would be skipped at once"


SKIP = Story(skipping, skip, still_wished_or_done, is_skipped)

STORIES = {
    "store.move": MOVE,
    "inbox.take_in": TAKE_IN,
    "inbox.finish_taking_in": FINISH_TAKING_IN,
    "checkpoints.accept": ACCEPT,
    "trash.discard": DISCARD,
    "ledger.record": RECORD,
    "settling.end": END,
    "settling.skip": SKIP,
}


@pytest.fixture(params=STORIES)
def story(request: pytest.FixtureRequest) -> Story:
    return STORIES[request.param]


def check(
    story: Story, root: Path, disasters: Callable[[Callable[[str], Callable[[], object]]], Iterator[str]]
) -> None:
    def make(name: str) -> Callable[[], object]:
        with without_waiting():
            workspace = make_workspace(root / name)
            workspace.events.write_text("\n")  # there already: its folder is no place to fail at
            story.before(workspace)
        return lambda: story.step(workspace)

    for name in disasters(make):
        workspace = Workspace.at(root / name)
        story.at_once(workspace)
        for _ in range(2):  # and once more, as every step can be repeated
            with without_waiting():
                story.step(workspace)
            story.in_the_end(workspace)


def test_a_step_that_dies_at_any_call_loses_and_doubles_nothing(story: Story, tmp_path: Path) -> None:
    check(story, tmp_path, every_death)


def test_a_step_that_fails_at_any_call_says_so_and_loses_and_doubles_nothing(story: Story, tmp_path: Path) -> None:
    check(story, tmp_path, partial(every_failure, told_later="events.jsonl"))


def test_a_step_renames_nothing_unsynced_and_leaves_nothing_unsynced(story: Story, tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    story.before(workspace)
    recorder = recorded(tmp_path, lambda: story.step(workspace))
    assert recorder.faults == []
    assert recorder.unsynced == []
    story.in_the_end(workspace)


def test_what_a_death_left_half_written_in_a_job_s_folders_goes_when_the_job_ends(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    found = put_job(workspace, State.PROCESSING)
    run = workspace.run(found.id).root
    run.mkdir()
    for folder in (found.folder, run):
        (folder / ".job.json.4711.tmp").write_text("{")
        (folder / ".stage-tokens").mkdir()
    settling.end(open_context(workspace), found, State.REJECTED, "because", None)
    assert files.leftovers(the_job(workspace).folder) == files.leftovers(run) == []


def test_the_bytes_of_a_dropped_file_are_on_the_disk_before_its_report_says_what_they_are(tmp_path: Path) -> None:
    workspace = Workspace.at(helpers_data.make_workspace(tmp_path))
    folder = helpers_data.make_job(tmp_path, helpers_data.jsonl(helpers_data.chat("Who?", "Me.")))
    synced = []

    def listen(name: str, call: Callable[[], object], arguments: tuple[Any, ...]) -> object:
        if name == "fsync":
            synced.append(Path(os.readlink(f"/proc/self/fd/{arguments[0]}")))
        return call()

    with disk_with(listen):
        intake.examine(workspace, folder)
    (report,) = (f for f in synced if f.name.startswith(".report.json"))
    assert synced.index(folder / "x.jsonl") < synced.index(report)
