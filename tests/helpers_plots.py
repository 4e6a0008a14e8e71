"""The plots: every step that changes a workspace, so that each call to the door is made in at least one of them."""

import asyncio
import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import structlog

from daemon import checking, wishes
from daemon.cli import doctor
from daemon.core import config, files, locks
from daemon.core.attempts import Assignment, Control, Evaluation, ExitInfo, Outcome
from daemon.core.config import Settings
from daemon.core.errors import DaemonError, NotRunning
from daemon.core.paths import Attempt, Workspace
from daemon.core.records import ENDED_STATES, Answer, Desired, IntakeReport, Job, Question, State, Verdict, Wish, now
from daemon.data import intake, tokens
from daemon.jobs import inbox, ledger, store
from daemon.models import base, checkpoints, create, trash
from daemon.service import going_back, main, rebuilding, settling
from daemon.service import wishes as obeying
from daemon.service.context import Context
from daemon.service.logs import DailyFile
from daemon.service.runner import Runner
from daemon.service.starting import Starting
from daemon.service.taking import Taking
from daemon.service.tracker import Tracker
from tests import helpers_data
from tests.helpers_disk import disk_with
from tests.helpers_jobs import DATA, ledger_line, put_checkpoint, put_job, states_of
from tests.helpers_stories import Plot, nothing
from tests.test_crashes import STORIES, latest_is_good, open_context, the_job

OLD_SECONDS = 7200
ROWS = [helpers_data.chat(f"What is {n}?", f"It is {n}.") for n in range(4)]
ANYWAY: Any = None  # what no part of these steps looks at


class NoServer(Runner):
    """Attempts are handed to nobody: what a worker does has a plot of its own."""

    async def ensure_server(self) -> bool:
        return True

    async def hand_over(self, attempt: Attempt) -> None:
        pass


def context_of(workspace: Workspace) -> Context:
    settings, _ = config.load(workspace.config, {})
    return Context(workspace, settings, NoServer(workspace, lambda: None), Tracker(workspace), lambda: None)


def run(step: Callable[[Context], Coroutine[Any, Any, Any]]) -> Callable[[Workspace], object]:
    return lambda workspace: asyncio.run(step(context_of(workspace)))


def every_record_can_be_read(workspace: Workspace) -> None:
    """Whatever has a name is whole; one job lies in one state; the accepted model is as it was saved."""
    for path in workspace.root.rglob("*.json"):
        if not any(part.startswith(".") for part in path.relative_to(workspace.root).parts):
            json.loads(path.read_text())
    for found in store.jobs(workspace):
        assert states_of(workspace, found.id) == [found.state]
        assert found.data.is_file()
    if checkpoints.latest(workspace):
        latest_is_good(workspace)
    for folder in checkpoints.every(workspace):
        assert checkpoints.damage(folder) is None, folder


# ---- a damaged model ----


def three_are_accepted(workspace: Workspace) -> Path:
    """Three files were trained and accepted, one upon the other; a fourth waits."""
    lineage: list[dict[str, Any]] = []
    parent = None
    for step in (10, 20, 30):
        found = put_job(workspace, State.COMPLETED, f"{step}.jsonl")
        lineage.append({"job": found.id, "file": "x", "sha256": "e", "rows": 2, "epochs": 1, "steps": 10})
        folder = put_checkpoint(workspace, step, found.id, parent, lineage=list(lineage), final=True)
        parent = checkpoints.name_of(folder)
        ledger.record(workspace, ledger_line(job=found.id, outcome="completed", checkpoint=folder.name))
    checkpoints.accept(workspace, folder)
    put_job(workspace, State.NORMAL, "40.jsonl")
    return folder


def the_accepted_is_damaged(workspace: Workspace) -> None:
    os.truncate(three_are_accepted(workspace) / "model.safetensors", 3)


def latest_is_a_copy(workspace: Workspace) -> None:
    """Somebody brought the workspace here with a tool that follows links."""
    accepted = three_are_accepted(workspace)
    workspace.latest.unlink()
    shutil.copytree(accepted, workspace.latest)


async def look_after_model(context: Context) -> None:
    (waiting,) = [found for found in store.waiting(context.workspace) if found.job.file == "40.jsonl"]
    await going_back.look_after_model(context, waiting.id)


def files_in(workspace: Workspace, state: State) -> list[str]:
    return sorted(found.job.file for found in store.jobs(workspace, state))


def one_model_is_whole(workspace: Workspace) -> None:
    assert checkpoints.damage(workspace.checkpoint(20)) is None
    assert len(store.jobs(workspace)) == 4
    assert {"10.jsonl", "20.jsonl"} <= set(files_in(workspace, State.COMPLETED))
    latest = checkpoints.latest(workspace)
    assert latest and latest.name in ("checkpoint-30", "checkpoint-20")
    if latest.name == "checkpoint-20":
        is_back_at_20(workspace)


def is_back_at_20(workspace: Workspace) -> None:
    latest = checkpoints.latest(workspace)
    assert latest == workspace.checkpoint(20)
    assert files_in(workspace, State.NORMAL) == ["30.jsonl", "40.jsonl"]
    assert list(ledger.accepted(workspace).values()) == ["checkpoint-10", "checkpoint-20"]


def the_copy_is_kept(workspace: Workspace) -> None:
    """It may hold what somebody changed by hand."""
    copies = [f for f in workspace.current_model.glob("latest*") if f.is_dir() and not f.is_symlink()]
    assert len(copies) == 1
    assert checkpoints.damage(copies[0]) is None


def latest_is_a_link_again(workspace: Workspace) -> None:
    the_copy_is_kept(workspace)
    assert latest_is_good(workspace) == workspace.checkpoint(30)
    assert files_in(workspace, State.NORMAL) == ["40.jsonl"]
    assert len(ledger.accepted(workspace)) == 3


# ---- files for the inbox ----


def a_file_at_home(workspace: Workspace) -> None:
    (workspace.root / "home").mkdir()
    (workspace.root / "home/x.jsonl").write_bytes(DATA)
    workspace.inbox.rmdir()


def dropped(workspace: Workspace) -> list[Path]:
    return sorted(workspace.inbox.glob("[!.]*.jsonl")) if workspace.inbox.exists() else []


def add(workspace: Workspace) -> None:
    if not dropped(workspace):
        wishes.drop(workspace, workspace.root / "home/x.jsonl", {"priority": "high"})


def what_was_dropped_is_whole_and_has_its_settings(workspace: Workspace) -> None:
    assert (workspace.root / "home/x.jsonl").read_bytes() == DATA
    for path in dropped(workspace):
        assert path.read_bytes() == DATA
        assert path.with_suffix(".yaml").read_text() == "priority: high\n"


def is_dropped_once(workspace: Workspace) -> None:
    what_was_dropped_is_whole_and_has_its_settings(workspace)
    assert len(dropped(workspace)) == 1


def add_beside_a_rival(workspace: Workspace) -> None:
    """Another takes the data's name in the instant after our settings have theirs, and y.yaml is another's too."""

    def around(name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        result = call()
        rival = workspace.inbox / "x.jsonl"
        if name == "link" and arguments[1] == rival.with_suffix(".yaml") and not rival.exists():
            rival.write_bytes(b"the rival's\n")
        return result

    if not (workspace.inbox / "x-3.jsonl").exists():
        with disk_with(around):
            wishes.drop(workspace, workspace.root / "home/x.jsonl", {"priority": "high"})


def a_rival_to_come(workspace: Workspace) -> None:
    a_file_at_home(workspace)
    workspace.inbox.mkdir()
    (workspace.inbox / "x-2.yaml").write_text("priority: low\n")


def everybody_has_his_own(workspace: Workspace) -> None:
    mine = [path for path in dropped(workspace) if path.read_bytes() == DATA]
    assert mine and all(path.with_suffix(".yaml").read_text() == "priority: high\n" for path in mine)


def add_under_a_long_name(workspace: Workspace) -> None:
    """The settings beside it would have a longer name than a filesystem allows."""
    source = workspace.root / "home" / ("x" * 251 + ".txt")
    with suppress(OSError):
        wishes.drop(workspace, source, {"priority": "high"})


def a_long_name(workspace: Workspace) -> None:
    a_file_at_home(workspace)
    (workspace.root / "home/x.jsonl").rename(workspace.root / "home" / ("x" * 251 + ".txt"))


def nothing_came_in(workspace: Workspace) -> None:
    assert not [f for f in workspace.inbox.iterdir() if not f.name.startswith(".")] if workspace.inbox.exists() else 1


# ---- wishes ----


def ask(workspace: Workspace, verb: str, job: str | None = None, **options: Any) -> None:
    wishes.send(workspace, verb, job, options, lives_seconds=OLD_SECONDS)


def ask_anew(workspace: Workspace) -> None:
    if workspace.wishes.exists():
        workspace.wishes.rmdir()


def send(workspace: Workspace) -> None:
    if not list(workspace.wishes.glob("[!.]*.json")):
        ask(workspace, "pause")


def every_wish_is_whole(workspace: Workspace) -> None:
    for path in workspace.wishes.glob("[!.]*.json"):
        assert (Answer if path.name.endswith(".answer.json") else Wish).load(path)


def is_asked_once(workspace: Workspace) -> None:
    every_wish_is_whole(workspace)
    assert len(list(workspace.wishes.glob("[!.]*.json"))) == 1


def obey_with_nobody_there(workspace: Workspace) -> None:
    workspace.config.write_text("{")
    (wish,) = [Wish.load(path) for path in workspace.wishes.glob("[!.]*.json")]
    with suppress(NotRunning):
        assert wish
        wishes._obey_once(workspace, wish, 60)


def is_withdrawn(workspace: Workspace) -> None:
    assert not list(workspace.wishes.glob("[!.]*.json"))


def withdraw(workspace: Workspace) -> None:
    for path in workspace.wishes.glob("[!.]*.json"):
        files.remove(path)


def many_wishes(workspace: Workspace) -> None:
    """One of every kind that ends at once; an answer that nobody fetched, and half a wish of one who died."""
    jobs = {state: put_job(workspace, state, f"{state}.jsonl") for state in (State.LOW, State.NORMAL, State.FAILED)}
    for found in jobs.values():
        found.data.write_bytes(found.id.encode())
    freeze(workspace, jobs[State.FAILED])
    ask(workspace, "set_priority", jobs[State.LOW].id, priority="high")
    ask(workspace, "remove", jobs[State.NORMAL].id)
    ask(workspace, "retry", jobs[State.FAILED].id, again=True)
    ask(workspace, "pause")
    (workspace.wishes / "zz.json").write_text("{")
    for name in ("0.answer.json", ".1.json.4711.tmp"):
        (workspace.wishes / name).write_text(json.dumps({"id": "0", "done": True, "message": "", "at": ""}))
        os.utime(workspace.wishes / name, (time.time() - OLD_SECONDS,) * 2)
    workspace.stop_file.write_text("")


def freeze(workspace: Workspace, found: store.Found) -> None:
    """The job was begun once."""
    files.make_folder(workspace.run(found.id).root)
    workspace.run(found.id).config.write_text("learning_rate: 1\n")


def answers(workspace: Workspace) -> dict[str, Answer]:
    found = [Answer.load(path) for path in workspace.wishes.glob("[!0]*.answer.json")]
    return {answer.message: answer for answer in found if answer}


def answered_is_true(workspace: Workspace) -> None:
    """An answer that lasts tells of a deed that lasts."""
    every_wish_is_whole_or_was_not(workspace)
    said = " ".join(answers(workspace))
    jobs = {found.job.file: found for found in store.jobs(workspace)}
    if "low.jsonl has priority" in said:
        assert jobs["low.jsonl"].state is State.HIGH
    if "normal.jsonl is taken out" in said:
        assert "normal.jsonl" not in jobs
    if "waiting again" in said:
        assert jobs["failed.jsonl"].state is State.NORMAL
        assert not workspace.run(jobs["failed.jsonl"].id).config.exists(), "it begins with today's settings"
    if "paused" in said:
        assert Desired.load(workspace.desired) and open_context(workspace).desired.paused
    data = [f.parent.name for f in workspace.root.rglob("data.jsonl") if f.read_text() == f.parent.name]
    assert len(data) == len(set(data)) == 3


def every_wish_is_whole_or_was_not(workspace: Workspace) -> None:
    for path in workspace.wishes.glob("[!.0z]*.json"):
        assert (Answer if path.name.endswith(".answer.json") else Wish).load(path)


async def obey(context: Context) -> None:
    await obeying.obey(context)


def all_is_answered(workspace: Workspace) -> None:
    answered_is_true(workspace)
    assert all(path.name.endswith(".answer.json") for path in workspace.wishes.glob("[!.]*.json"))
    assert len(answers(workspace)) == 5
    assert open_context(workspace).desired.stop == "now"


def with_a_worker(**desired: Any) -> Plot:
    """A wish reaches the worker that lives; the lock that says so is held by this very process."""

    def before(workspace: Workspace) -> None:
        found = put_job(workspace, State.PROCESSING)
        files.make_folder(workspace.run(found.id).attempt(1).root)
        Desired.model_validate(desired | ({"skip": found.id} if "skip" in desired else {})).save(workspace.desired)

    def tell(workspace: Workspace) -> None:
        attempt = workspace.run(the_job(workspace).id).attempt(1)
        lock = locks.Lock(workspace.worker_lock)
        lock.describe({"pid": os.getpid(), "attempt": str(attempt.root), "start_time": 0.0})
        try:
            asyncio.run(obeying.obey(context_of(workspace)))
        finally:
            lock.release()

    def told(workspace: Workspace) -> None:
        assert Control.load(workspace.run(the_job(workspace).id).attempt(1).control)

    return Plot(before, tell, tell, the_job, told)


def leaving(workspace: Workspace) -> None:
    """SIGTERM was not obeyed in time for the wish: the loop tells the worker by itself."""
    attempt = workspace.run(the_job(workspace).id).attempt(1)
    lock = locks.Lock(workspace.worker_lock)
    lock.describe({"pid": os.getpid(), "attempt": str(attempt.root), "start_time": 0.0})
    try:
        daemon = main.Daemon(workspace, config.load(workspace.config, {})[0])
        asyncio.run(daemon._round({"end the worker": daemon.steps["end the worker"]}))
    finally:
        lock.release()


def stop_daemon(workspace: Workspace) -> None:
    asyncio.run(main.Daemon(workspace, config.load(workspace.config, {})[0])._stop())


def wished_to_stop(workspace: Workspace) -> None:
    workspace.stop_file.write_text("")
    Desired(stop="now").save(workspace.desired)


def has_stopped(workspace: Workspace) -> None:
    assert not workspace.stop_file.exists() and open_context(workspace).desired.stop is None


# ---- from a file to an attempt ----


def examined_workspace(root: Path) -> Workspace:
    """A workspace that intake and preflight accept, with a holdout and a small base model."""
    workspace = Workspace.at(helpers_data.make_workspace(root, max_row_bytes=4096, max_bad_row_percent=20))
    for folder in workspace.folders():
        files.make_folder(folder)
    model = workspace.base_models / "small"
    (model / "config.json").write_text("{}")
    base.Seal(sha256="d" * 64, source="here", files={}).save(model / base.SEAL)
    (workspace.validation / "h.jsonl").write_bytes(helpers_data.jsonl(helpers_data.chat("Who?", "Me.")))
    (workspace.benchmarks / "s.jsonl").write_bytes(helpers_data.jsonl(helpers_data.chat("Which?", "This.")))
    return workspace


def a_job(workspace: Workspace, data: bytes, **facts: Any) -> Path:
    return helpers_data.make_job(workspace.root, data, "data.jsonl", **facts)


def a_read_job(workspace: Workspace) -> Path:
    """Read before, and to be read again, the holdout too."""
    good = [helpers_data.chat(f"What is {n}?", f"It is {n}.") for n in range(9)]
    folder = a_job(workspace, helpers_data.jsonl(*good) + b'{"messages": []}\n')
    examine(workspace)
    (workspace.validation / "h.jsonl").write_bytes(helpers_data.jsonl(helpers_data.chat("Who is it?", "I.")))
    (workspace.benchmarks / "s.jsonl").write_bytes(helpers_data.jsonl(helpers_data.chat("Which is it?", "That.")))
    return folder


def examine(workspace: Workspace) -> None:
    for found in store.waiting(workspace):
        intake.examine(workspace, found.folder)


def a_report_is_true(workspace: Workspace) -> None:
    """A report that can be read tells of a cache that is whole; the data is there."""
    for found in store.jobs(workspace):
        assert found.data.stat().st_size == found.job.bytes
        report = IntakeReport.load(found.report)
        if report and report.usable and found.state not in ENDED_STATES:
            settings = config.load(workspace.config, {})[0]
            wanted = tokens.key(workspace.root / settings.base_model, settings)
            assert tokens.check(found.tokens, wanted, report.sha256, deep=True) is None
            assert report.sha256 == files.hash_file(found.data)
            assert bool(report.bad_rows) == (found.folder / store.REJECTED_ROWS).is_file()
    for cache in (*workspace.validation.glob(".tokens-*"), *workspace.benchmarks.glob(".tokens-*")):
        meta = tokens.read_meta(cache)  # all that the start of a training asks about it
        assert meta is None or tokens.check(cache, meta.key, meta.data_sha256, deep=True) is None


def has_its_report(workspace: Workspace) -> None:
    a_report_is_true(workspace)
    assert all(found.report.is_file() for found in store.waiting(workspace))


def an_unusable_job(workspace: Workspace) -> None:
    a_job(workspace, b"".join(b'{"messages": [%d]}\n' % n for n in range(1)))


def a_broken_holdout_cache(workspace: Workspace) -> None:
    a_job(workspace, helpers_data.jsonl(*ROWS))
    examine(workspace)
    (cache,) = workspace.validation.glob(".tokens-*")
    (cache / tokens.IDS).write_bytes(b"damaged")


async def take_and_start(context: Context) -> None:
    """A round of the loop, as far as it concerns a job that waits; reading is done in this process."""
    taking = Taking(context, lambda: None)
    starting = Starting(context, taking)
    for found in store.waiting(context.workspace):
        with suppress(ValueError):
            if not found.report.exists() or not IntakeReport.load(found.report):
                intake.examine(context.workspace, found.folder)
    await taking.step()
    await starting.step(stopping=False)
    await taking.close()


def a_good_job(workspace: Workspace) -> None:
    a_job(workspace, helpers_data.jsonl(*ROWS))
    examine(workspace)


def an_attempt_can_be_trusted(workspace: Workspace) -> None:
    """A job in processing has an assignment, and settings that are frozen."""
    every_record_can_be_read(workspace)
    a_report_is_true(workspace)
    for found in store.jobs(workspace, State.PROCESSING):
        attempt = workspace.run(found.id).newest_attempt()
        assert attempt and Assignment.load(attempt.assignment)
        assert workspace.run(found.id).config.read_text()


def is_handed_over(workspace: Workspace) -> None:
    an_attempt_can_be_trusted(workspace)
    assert len(store.jobs(workspace, State.PROCESSING)) == 1


def begun_upon_another(workspace: Workspace) -> None:
    """A job in processing with a damaged checkpoint, one of another lineage above it, and half of a save."""
    a_good_job(workspace)
    asyncio.run(take_and_start(context_of(workspace)))
    found = the_only(workspace)
    checkpoints_of(workspace, found)
    (workspace.current_model / ".stage-checkpoint-12").mkdir()
    (workspace.current_model / ".stage-checkpoint-12/half").write_text("half")


def the_only(workspace: Workspace) -> store.Found:
    (found,) = store.jobs(workspace)
    assert states_of(workspace, found.id) == [found.state]
    return found


def checkpoints_of(workspace: Workspace, found: store.Found) -> None:
    put_checkpoint(workspace, 10, job=found.id)
    put_checkpoint(workspace, 11, job=found.id)
    (workspace.checkpoint(11) / "optimizer.pt").write_bytes(b"damaged")


def goes_on_from_the_good_one(workspace: Workspace) -> None:
    attempt = workspace.run(the_only(workspace).id).newest_attempt()
    assignment = Assignment.load(attempt.assignment) if attempt else None
    assert assignment and assignment.resume == "current_model/checkpoint-10"
    assert [f.name for f in checkpoints.every(workspace)] == ["checkpoint-10"]


def the_good_checkpoint_stays(workspace: Workspace) -> None:
    assert checkpoints.damage(workspace.checkpoint(10)) is None
    found = the_only(workspace)
    assert found.state is State.PROCESSING


def changed_since_it_was_read(workspace: Workspace) -> None:
    a_good_job(workspace)
    found = the_only(workspace)
    data = helpers_data.jsonl(*reversed(ROWS))
    assert len(data) == found.job.bytes
    found.data.write_bytes(data)


def no_stale_report_is_trained(workspace: Workspace) -> None:
    for found in store.jobs(workspace, State.PROCESSING):
        report = IntakeReport.load(found.report)
        assert report and report.sha256 == files.hash_file(found.data)


async def three_rounds(context: Context) -> None:
    for _ in range(3):
        await take_and_start(context)


def after_another(workspace: Workspace) -> None:
    a_good_job(workspace)
    earlier = the_only(workspace)
    folder = workspace.state(State.NORMAL) / "20260101T000000-0002-y"
    shutil.copytree(earlier.folder, folder)
    Job.model_validate(
        earlier.job.model_dump() | {"id": folder.name, "file": "y.jsonl", "after": earlier.id[:20]}
    ).save(folder / store.RECORD)
    store.move(workspace, earlier, State.LOW)


def both_jobs_are_whole(workspace: Workspace) -> None:
    every_record_can_be_read(workspace)
    assert len(store.jobs(workspace)) == 2


def is_pinned(workspace: Workspace) -> None:
    both_jobs_are_whole(workspace)
    assert store.find(workspace, "y.jsonl").job.after == store.find(workspace, "data.jsonl").id


def put_back_by_hand(workspace: Workspace) -> None:
    a_good_job(workspace)
    found = the_only(workspace)
    found.job.model_copy(update={"reason": "because", "remedy": "this"}).save(found.folder / store.RECORD)
    freeze(workspace, found)


def a_damaged_report(workspace: Workspace) -> None:
    a_good_job(workspace)
    the_only(workspace).report.write_text("{")


async def only_take(context: Context) -> None:
    context.hold("base_model", "config", "no process for reading is started here", None)
    taking = Taking(context, lambda: None)
    await taking.step()


def waits_without_a_reason(workspace: Workspace) -> None:
    found = the_only(workspace)
    assert found.job.reason is None and not workspace.run(found.id).config.exists()


def report_is_gone(workspace: Workspace) -> None:
    assert not the_only(workspace).report.exists()


def one_job_is_whole(workspace: Workspace) -> None:
    assert the_only(workspace).data.is_file()


def ended_by_its_settings(workspace: Workspace) -> None:
    a_good_job(workspace)
    asyncio.run(take_and_start(context_of(workspace)))
    attempt = workspace.run(the_only(workspace).id).attempt(1)
    Outcome(kind="bad_config", code=21, message="because", job_step=0, at=now()).save(attempt.outcome)
    os.utime(workspace.config, (time.time() + OLD_SECONDS,) * 2)


def start_after_a_change(workspace: Workspace) -> None:
    os.utime(workspace.config, (time.time() + OLD_SECONDS,) * 2)  # a state that is built has no times
    run(take_and_start)(workspace)


def has_another_attempt(workspace: Workspace) -> None:
    an_attempt_can_be_trusted(workspace)
    newest = workspace.run(the_only(workspace).id).newest_attempt()
    assert newest and newest.number >= 2


# ---- from an attempt to the accepted model ----


def done(workspace: Workspace, loss: float = 1.0) -> None:
    """A worker has trained to the end; `latest` is the model before it, and older ones are to be pruned."""
    for step in (7, 8, 9):
        checkpoints.accept(workspace, put_checkpoint(workspace, step))
    found = put_job(workspace, State.PROCESSING)
    (found.tokens / store.DIGESTS).write_bytes(bytes(16))
    settings = Settings.model_validate(json.loads(workspace.config.read_text()) | {"save_total_limit": 2})
    files.make_folder(workspace.run(found.id).attempt(1).root)
    files.write(workspace.run(found.id).config, json.dumps(settings.model_dump(mode="json")))
    workspace.config.write_text(json.dumps({**json.loads(workspace.config.read_text()), "save_total_limit": 2}))
    put_checkpoint(workspace, 10, job=found.id)
    attempt = workspace.run(found.id).attempt(1)
    Evaluation(holdout_key="9" * 64, rows=2, before=2.0, after=loss, checkpoint="checkpoint-10").save(
        attempt.evaluation
    )
    outcome = {"kind": "done", "code": 0, "message": "", "checkpoint": "checkpoint-10", "job_step": 1250, "at": now()}
    Outcome.model_validate(outcome).save(attempt.outcome)
    ExitInfo(pid=1, code=0, signal=None, at=now()).save(attempt.exit)


async def settle(context: Context) -> None:
    for _ in range(2):
        await settling.settle(context)


def accepted_only_by_a_verdict(workspace: Workspace) -> None:
    """`latest` moves after the gate, the ledger is written before the job goes on."""
    found = the_job(workspace)
    every_record_can_be_read(workspace)
    verdict = Verdict.load(workspace.run(found.id).verdict)
    new = checkpoints.latest(workspace) == workspace.checkpoint(10)
    assert not new or (verdict and verdict.passed)
    lines = [line for line in ledger.lines(workspace) if line.job == found.id]
    if found.state is not State.PROCESSING:
        assert [line.outcome for line in lines] == [found.state.value]
        assert (found.state is State.COMPLETED) == new
    assert not new or checkpoints.read(workspace.checkpoint(10))


def is_completed(workspace: Workspace) -> None:
    accepted_only_by_a_verdict(workspace)
    found = the_job(workspace)
    assert found.state is State.COMPLETED
    assert "passed: true" in workspace.run(found.id).results.read_text()
    assert "# x.jsonl: completed" in workspace.run(found.id).report.read_text()
    assert (found.folder / store.DIGESTS).read_bytes() == bytes(16)


def is_rejected(workspace: Workspace) -> None:
    accepted_only_by_a_verdict(workspace)
    found = the_job(workspace)
    assert found.state is State.REJECTED
    assert "passed: false" in workspace.run(found.id).results.read_text()
    assert "# x.jsonl: rejected" in workspace.run(found.id).report.read_text()
    assert checkpoints.latest(workspace) == workspace.checkpoint(9)


def done_but_damaged(workspace: Workspace) -> None:
    done(workspace)
    (workspace.checkpoint(10) / "optimizer.pt").write_bytes(b"damaged")


def nothing_is_accepted(workspace: Workspace) -> None:
    assert latest_is_good(workspace) == workspace.checkpoint(9)
    assert the_job(workspace).state is State.PROCESSING


def outcome_is_taken_back(workspace: Workspace) -> None:
    nothing_is_accepted(workspace)
    assert not workspace.run(the_job(workspace).id).attempt(1).outcome.exists()


def done_for_a_person(workspace: Workspace) -> None:
    """As `done`, with a worse loss, and a person is to weigh it."""
    done(workspace, 9.0)
    found = the_job(workspace)
    trash.delete(workspace, workspace.checkpoint(10))
    lineage = [{"job": found.id, "file": "x", "sha256": "b" * 64, "rows": 2, "epochs": 1, "steps": 1}]
    put_checkpoint(workspace, 10, job=found.id, lineage=lineage)
    path = workspace.run(found.id).config
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gate": {"mode": "human"}}))


def asked_of_a_person(verb: str) -> Callable[[Workspace], None]:
    def before(workspace: Workspace) -> None:
        done_for_a_person(workspace)
        run(settle)(workspace)
        ask(workspace, verb, the_job(workspace).id)

    return before


async def obey_and_settle(context: Context) -> None:
    for _ in range(3):
        await obeying.obey(context)
        await settling.settle(context)


def decided_only_by_a_person(workspace: Workspace) -> None:
    """`latest` moves, and the job with it, as the answer says that lies there; nobody is told so before."""
    accepted_only_by_a_verdict(workspace)
    found = the_job(workspace)
    question = Question.load(workspace.run(found.id).question)
    new = checkpoints.latest(workspace) == workspace.checkpoint(10)
    assert not new or (question and question.answer)
    assert found.state is not State.REJECTED or (question and question.answer is False)
    assert not any(answer.done for answer in answers(workspace).values()) or found.state is not State.PROCESSING


def is_asked(workspace: Workspace) -> None:
    decided_only_by_a_person(workspace)
    nothing_is_accepted(workspace)
    question = Question.load(workspace.run(the_job(workspace).id).question)
    assert question and question.answer is None and not question.automatic.passed


def is_approved(workspace: Workspace) -> None:
    decided_only_by_a_person(workspace)
    is_completed(workspace)
    assert [answer.done for answer in answers(workspace).values()] == [True]


def is_rejected_by_hand(workspace: Workspace) -> None:
    decided_only_by_a_person(workspace)
    is_rejected(workspace)
    assert [answer.done for answer in answers(workspace).values()] == [True]


def skipped_and_kept(workspace: Workspace, loss: float = 1.0) -> None:
    """A worker has saved and evaluated what it had learned when it was told to keep it."""
    done(workspace, loss)
    found = the_job(workspace)
    trash.delete(workspace, workspace.checkpoint(10))
    lineage = [
        {"job": found.id, "file": "x", "sha256": "b" * 64, "rows": 2, "epochs": 1, "steps": 1, "rows_trained": 1}
    ]
    latest = checkpoints.name_of(workspace.checkpoint(9))
    put_checkpoint(workspace, 10, found.id, latest, lineage=lineage, final=False, job_step=1)
    attempt = workspace.run(found.id).attempt(1)
    assignment = json.loads((Path(__file__).parent / "golden/Assignment.json").read_text())
    Assignment.model_validate(assignment | {"job": found.id, "holdout_key": "9" * 64}).save(attempt.assignment)
    outcome = {"kind": "stopped", "code": 11, "message": "", "checkpoint": "checkpoint-10", "job_step": 1, "at": now()}
    Outcome.model_validate(outcome).save(attempt.outcome)
    Desired(skip=found.id, keep=True).save(workspace.desired)


def kept_only_by_a_verdict(workspace: Workspace) -> None:
    """`latest` moves after the gate; a job in skipped says truly whether the model contains a part of it."""
    found = the_job(workspace)
    every_record_can_be_read(workspace)
    verdict = Verdict.load(workspace.run(found.id).verdict)
    new = checkpoints.latest(workspace) == workspace.checkpoint(10)
    assert not new or (verdict and verdict.passed and verdict.kept)
    if found.state is State.SKIPPED:
        assert new and found.job.reason and "are in the model" in found.job.reason
        assert ledger.accepted(workspace)[found.id] == "checkpoint-10"
    assert new or open_context(workspace).desired.keep or found.state is State.REJECTED


def is_kept(workspace: Workspace) -> None:
    kept_only_by_a_verdict(workspace)
    found = the_job(workspace)
    assert found.state is State.SKIPPED
    (line,) = ledger.lines(workspace)
    assert (line.outcome, line.checkpoint, line.steps) == ("skipped", "checkpoint-10", 1)
    consumed = workspace.checkpoint(10) / checkpoints.CONSUMED
    assert workspace.run(found.id).consumed.read_bytes() == consumed.read_bytes()
    assert workspace.run(found.id).results.read_text()


async def settle_thrice(context: Context) -> None:
    for _ in range(3):
        await settling.settle(context)


def is_not_kept(workspace: Workspace) -> None:
    kept_only_by_a_verdict(workspace)
    assert the_job(workspace).state is State.REJECTED
    assert checkpoints.latest(workspace) == workspace.checkpoint(9)


def kept_but_damaged(workspace: Workspace) -> None:
    skipped_and_kept(workspace)
    (workspace.checkpoint(10) / "optimizer.pt").write_bytes(b"damaged")


def is_dropped(workspace: Workspace) -> None:
    assert latest_is_good(workspace) == workspace.checkpoint(9)
    assert the_job(workspace).state is State.SKIPPED and ledger.accepted(workspace) == {}


def nothing_new_is_accepted(workspace: Workspace) -> None:
    the_job(workspace)
    assert latest_is_good(workspace) == workspace.checkpoint(9)


def to_be_evaluated(workspace: Workspace) -> None:
    """Paused first and skipped then: the worker saved, and did not evaluate."""
    a_good_job(workspace)
    asyncio.run(take_and_start(context_of(workspace)))
    found = the_only(workspace)
    put_checkpoint(workspace, 1, job=found.id, final=False, job_step=1)
    attempt = workspace.run(found.id).attempt(1)
    Outcome(kind="paused", code=10, message="", checkpoint="checkpoint-1", job_step=1, at=now()).save(attempt.outcome)
    Desired(skip=found.id, keep=True).save(workspace.desired)


def goes_on_only_from_what_was_learned(workspace: Workspace) -> None:
    one_job_is_whole(workspace)
    assert checkpoints.damage(workspace.checkpoint(1)) is None


def is_told_to_evaluate(workspace: Workspace) -> None:
    """The control may be missing where the power failed before the hand-over; then the loop tells the worker."""
    newest = workspace.run(the_only(workspace).id).newest_attempt()
    assert newest and newest.number >= 2
    assert open_context(workspace).desired.keep


def a_kept_part_is_damaged(workspace: Workspace) -> None:
    """As three that are accepted; the third was skipped, and what it had learned was kept."""
    folder = three_are_accepted(workspace)
    (third,) = [found for found in store.jobs(workspace, State.COMPLETED) if found.job.file == "30.jsonl"]
    third.folder.rename(workspace.state(State.SKIPPED) / third.id)
    ledger.record(workspace, ledger_line(job=third.id, outcome="skipped", checkpoint=folder.name))
    os.truncate(folder / "model.safetensors", 3)


def the_part_is_said_to_be_lost(workspace: Workspace) -> None:
    assert latest_is_good(workspace) == workspace.checkpoint(20)
    (skipped,) = store.jobs(workspace, State.SKIPPED)
    assert skipped.job.reason and "was lost" in skipped.job.reason
    assert list(ledger.accepted(workspace).values()) == ["checkpoint-10", "checkpoint-20"]


# ---- the ledger, made anew ----


def a_damaged_ledger(workspace: Workspace) -> None:
    three_are_accepted(workspace)
    lines = workspace.ledger.read_bytes().splitlines(keepends=True)
    workspace.ledger.write_bytes(lines[0] + b"{damaged\n" + b"".join(lines[1:]) + b'{"torn')
    for found in store.jobs(workspace, State.COMPLETED):
        found.job.model_copy(update={"moved_at": now()}).save(found.folder / store.RECORD)


def look_after_ledger(workspace: Workspace) -> None:
    rebuilding.look_after_ledger(context_of(workspace))


def nothing_is_forgotten(workspace: Workspace) -> None:
    """The lines can be read, here or in the copy that is kept."""
    ledgers = list(workspace.runs.glob("ledger*.jsonl"))
    assert len(ledgers) <= 3 and any(b"{damaged" in path.read_bytes() for path in ledgers)


def the_ledger_is_whole(workspace: Workspace) -> None:
    nothing_is_forgotten(workspace)
    assert ledger.damage(workspace) is None
    assert list(ledger.accepted(workspace).values()) == ["checkpoint-10", "checkpoint-20", "checkpoint-30"]


# ---- answers that were given ----


def answered_before(workspace: Workspace) -> None:
    """A crash came between an answer and the removal of its wish; another wishes the daemon to stop."""
    ask(workspace, "retry", put_job(workspace, State.FAILED).id)
    (path,) = workspace.wishes.glob("*.json")
    Answer(id=path.stem, done=True, message="done before", at=now()).save(path.with_name(f"{path.stem}.answer.json"))
    ask(workspace, "stop")


async def obey_and_end(context: Context) -> None:
    obeying.answer_stops(context)
    await obeying.obey(context)


def is_not_done_again(workspace: Workspace) -> None:
    assert the_job(workspace).state is State.FAILED
    assert sum(answer.message == "done before" for answer in answers(workspace).values()) == 1


def all_have_one_answer(workspace: Workspace) -> None:
    is_not_done_again(workspace)
    assert len(answers(workspace)) == 2 and open_context(workspace).desired.stop is None
    assert all(path.name.endswith(".answer.json") for path in workspace.wishes.glob("[!.]*.json"))


# ---- workspaces, settings, looks ----


def model_at_home(workspace: Workspace) -> None:
    source = workspace.root / "home/small"
    source.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (source / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    (source / "config.json").write_text(json.dumps({"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 512}))
    (source / "tokenizer.json").write_text(helpers_data.small_tokenizer())


def bare(root: Path) -> Workspace:
    root.mkdir()
    return Workspace.at(root)


def init(workspace: Workspace) -> None:
    if not workspace.config.exists():
        create._make(
            workspace,
            "small",
            lambda: base.install(workspace, str(workspace.root / "home/small"), "small"),
            lambda sizes: {"model_name": "small", "base_model": "models/base/small", **sizes.settings()},
            {"samples/x.jsonl": DATA.decode()},
            None,
        )


def a_workspace_is_whole_or_none(workspace: Workspace) -> None:
    """config.json comes last: where it is, all that it names is."""
    if workspace.config.exists():
        settings, _ = config.load(workspace.config, {})
        base.verify(workspace.root / settings.base_model)
        assert all(folder.is_dir() for folder in workspace.folders())
        assert (workspace.root / "samples/x.jsonl").read_bytes() == DATA
    for folder in workspace.base_models.glob("[!.]*"):
        base.verify(folder)


def is_a_workspace(workspace: Workspace) -> None:
    a_workspace_is_whole_or_none(workspace)
    assert workspace.config.exists()


def download(workspace: Workspace) -> None:
    """The hub cannot be asked here; what it would leave in the folder is put there, notes included."""

    def snapshot(hub_id: str, local_dir: Path, **_: Any) -> None:
        shutil.copytree(workspace.root / "home/small", local_dir, dirs_exist_ok=True)
        (local_dir / ".cache").mkdir()
        (local_dir / ".cache/note").write_text("")

    if not (workspace.base_models / "small").exists():
        with mock.patch("huggingface_hub.snapshot_download", snapshot):
            base.install(workspace, "org/small", "small")


def a_model_is_whole_or_none(workspace: Workspace) -> None:
    for folder in workspace.base_models.glob("[!.]*"):
        base.verify(folder)


def has_its_model(workspace: Workspace) -> None:
    base.verify(workspace.base_models / "small")


def fail_to_bring(workspace: Workspace) -> None:
    def fill(folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    with suppress(DaemonError):
        base._bring(workspace, "nowhere", "small", fill)


def no_model_came(workspace: Workspace) -> None:
    assert not (workspace.base_models / "small").exists()


def change_settings(workspace: Workspace) -> None:
    config.change(workspace.config, "max_length", 256)


def settings_can_be_read(workspace: Workspace) -> None:
    config.load(workspace.config, {})


def settings_are_changed(workspace: Workspace) -> None:
    assert config.load(workspace.config, {})[0].max_length == 256


def look_after_the_folders(workspace: Workspace) -> None:
    assert all(check.ok for check in doctor._folders(workspace))
    assert doctor._inotify(workspace)


def all_folders_are_there(workspace: Workspace) -> None:
    assert all(folder.is_dir() for folder in workspace.folders())


def without_a_folder(workspace: Workspace) -> None:
    workspace.benchmarks.rmdir()


def only_the_settings(workspace: Workspace) -> None:
    for name in ("inbox", "queue", "status", "logs", "runs", "data", "current_model"):
        shutil.rmtree(workspace.root / name)


def live_for_a_round(workspace: Workspace) -> None:
    handlers, configured = logging.getLogger().handlers[:], structlog.get_config()
    try:
        assert main.run(workspace, once=True) == 0
    finally:
        logging.getLogger().handlers[:] = handlers
        structlog.configure(**configured)


def old_logs(workspace: Workspace) -> None:
    (workspace.logs / "daemon_20200101.log").write_text("old")


def midnight(workspace: Workspace) -> None:
    handler = DailyFile(workspace.logs)
    handler.baseFilename = str(workspace.logs / "daemon_20200102.log")
    handler.emit(logging.LogRecord("daemon", logging.INFO, "", 1, "a new day", (), None))
    handler.close()


def abandoned(workspace: Workspace) -> None:
    copy = workspace.inbox / ".data.4711.abcdef.tmp"
    copy.write_text("half")
    os.utime(copy, (time.time() - OLD_SECONDS,) * 2)


def nothing_is_hidden(workspace: Workspace) -> None:
    assert not list(workspace.inbox.glob(".*"))


def withdraw_copies(workspace: Workspace) -> None:
    for copy in workspace.inbox.glob(".*"):  # a state that is built has no times
        files.remove(copy)


def record_twice(workspace: Workspace) -> None:
    for _ in range(2):
        ledger.record(workspace, ledger_line(job="later"))


def hold_out(workspace: Workspace) -> None:
    if not (workspace.validation / "x.jsonl").exists():
        checking.hold_out(workspace, workspace.root / "home/x.jsonl", 2)


def rows_at_home(workspace: Workspace) -> None:
    (workspace.root / "home").mkdir()
    (workspace.root / "home/x.jsonl").write_bytes(helpers_data.jsonl(*ROWS, *ROWS[::-1]))
    shutil.rmtree(workspace.validation)


def held_out_rows_are_whole(workspace: Workspace) -> None:
    path = workspace.validation / "x.jsonl"
    assert not path.exists() or len([json.loads(line) for line in path.read_text().splitlines()]) == 2


# ---- all of them ----

PLOTS: dict[str, Plot] = {
    name: Plot(story.before, story.step, story.step, story.at_once, story.in_the_end) for name, story in STORIES.items()
}
PLOTS |= {
    "add": Plot(
        a_file_at_home, add, add, what_was_dropped_is_whole_and_has_its_settings, is_dropped_once, of_daemon=False
    ),
    "add beside a rival": Plot(
        a_rival_to_come, add_beside_a_rival, add_beside_a_rival, nothing, everybody_has_his_own, of_daemon=False
    ),
    "add in vain": Plot(a_long_name, add_under_a_long_name, nothing, nothing_came_in, nothing_came_in, of_daemon=False),
    "send a wish": Plot(ask_anew, send, send, every_wish_is_whole, is_asked_once, of_daemon=False),
    "a wish is withdrawn": Plot(
        send, obey_with_nobody_there, withdraw, every_wish_is_whole, is_withdrawn, of_daemon=False
    ),
    "obey": Plot(many_wishes, run(obey), run(obey), answered_is_true, all_is_answered),
    "tell: skip": with_a_worker(skip="x"),
    "tell: pause": with_a_worker(paused=True, reason="user"),
    "tell: stop": with_a_worker(stop="now"),
    "tell: leaving": Plot(with_a_worker(paused=True).before, leaving, leaving, the_job, with_a_worker().in_the_end),
    "stop": Plot(wished_to_stop, stop_daemon, stop_daemon, nothing, has_stopped),
    "read": Plot(a_read_job, examine, examine, a_report_is_true, has_its_report, examined_workspace),
    "read in vain": Plot(an_unusable_job, examine, examine, a_report_is_true, has_its_report, examined_workspace),
    "read the holdout again": Plot(
        a_broken_holdout_cache, examine, examine, nothing, has_its_report, examined_workspace
    ),
    "start": Plot(
        a_good_job,
        run(take_and_start),
        run(take_and_start),
        an_attempt_can_be_trusted,
        is_handed_over,
        examined_workspace,
    ),
    "start again": Plot(
        begun_upon_another,
        run(take_and_start),
        run(take_and_start),
        the_good_checkpoint_stays,
        goes_on_from_the_good_one,
        examined_workspace,
    ),
    "start with changed settings": Plot(
        ended_by_its_settings,
        run(take_and_start),
        start_after_a_change,
        one_job_is_whole,
        has_another_attempt,
        examined_workspace,
    ),
    "read anew": Plot(
        changed_since_it_was_read,
        run(three_rounds),
        run(three_rounds),
        no_stale_report_is_trained,
        is_handed_over,
        examined_workspace,
    ),
    "pin": Plot(
        after_another, run(take_and_start), run(take_and_start), both_jobs_are_whole, is_pinned, examined_workspace
    ),
    "put back by hand": Plot(
        put_back_by_hand, run(only_take), run(only_take), one_job_is_whole, waits_without_a_reason, examined_workspace
    ),
    "a damaged report": Plot(
        a_damaged_report, run(only_take), run(only_take), one_job_is_whole, report_is_gone, examined_workspace
    ),
    "complete": Plot(done, run(settle), run(settle), accepted_only_by_a_verdict, is_completed),
    "reject": Plot(lambda w: done(w, 9.0), run(settle), run(settle), accepted_only_by_a_verdict, is_rejected),
    "refuse a damaged checkpoint": Plot(
        done_but_damaged, run(settle), run(settle), nothing_is_accepted, outcome_is_taken_back
    ),
    "ask a person": Plot(done_for_a_person, run(settle), run(settle), decided_only_by_a_person, is_asked),
    "approve": Plot(
        asked_of_a_person("approve"), run(obey_and_settle), run(obey_and_settle), decided_only_by_a_person, is_approved
    ),
    "reject by hand": Plot(
        asked_of_a_person("reject"),
        run(obey_and_settle),
        run(obey_and_settle),
        decided_only_by_a_person,
        is_rejected_by_hand,
    ),
    "keep": Plot(skipped_and_kept, run(settle_thrice), run(settle_thrice), kept_only_by_a_verdict, is_kept),
    "keep in vain": Plot(
        lambda w: skipped_and_kept(w, 9.0), run(settle_thrice), run(settle_thrice), kept_only_by_a_verdict, is_not_kept
    ),
    "keep what is damaged": Plot(
        kept_but_damaged, run(settle_thrice), run(settle_thrice), nothing_new_is_accepted, is_dropped
    ),
    "evaluate what is to be kept": Plot(
        to_be_evaluated,
        run(take_and_start),
        run(take_and_start),
        goes_on_only_from_what_was_learned,
        is_told_to_evaluate,
        examined_workspace,
    ),
    "go back before a kept part": Plot(
        a_kept_part_is_damaged, run(look_after_model), run(look_after_model), nothing, the_part_is_said_to_be_lost
    ),
    "make the ledger anew": Plot(
        a_damaged_ledger, look_after_ledger, look_after_ledger, nothing_is_forgotten, the_ledger_is_whole
    ),
    "answered before": Plot(
        answered_before, run(obey_and_end), run(obey_and_end), is_not_done_again, all_have_one_answer
    ),
    "go back": Plot(
        the_accepted_is_damaged, run(look_after_model), run(look_after_model), one_model_is_whole, is_back_at_20
    ),
    "latest is a copy": Plot(
        latest_is_a_copy, run(look_after_model), run(look_after_model), the_copy_is_kept, latest_is_a_link_again
    ),
    "init": Plot(model_at_home, init, init, a_workspace_is_whole_or_none, is_a_workspace, bare, of_daemon=False),
    "init from the hub": Plot(
        model_at_home, download, download, a_model_is_whole_or_none, has_its_model, bare, of_daemon=False
    ),
    "init in vain": Plot(nothing, fail_to_bring, nothing, no_model_came, no_model_came, of_daemon=False),
    "change a setting": Plot(
        nothing, change_settings, change_settings, settings_can_be_read, settings_are_changed, of_daemon=False
    ),
    "doctor": Plot(without_a_folder, look_after_the_folders, nothing, settings_can_be_read, nothing, of_daemon=False),
    "run once": Plot(
        only_the_settings,
        live_for_a_round,
        live_for_a_round,
        settings_can_be_read,
        all_folders_are_there,
        of_daemon=False,  # it cannot be killed here: this very process would still hold its lock
    ),
    "a new day": Plot(old_logs, midnight, nothing, nothing, nothing),
    "an abandoned copy": Plot(abandoned, inbox.clear_abandoned, withdraw_copies, nothing, nothing_is_hidden),
    "record twice": Plot(
        nothing, record_twice, record_twice, nothing, lambda w: [line.job for line in ledger.lines(w)].index("later")
    ),
    "hold out": Plot(
        rows_at_home, hold_out, nothing, held_out_rows_are_whole, nothing, examined_workspace, of_daemon=False
    ),
}
