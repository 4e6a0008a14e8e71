"""Take in: settled files become jobs, and each job's file is read, checked and tokenised once, in a process beside."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable

from daemon.core import files
from daemon.core.config import Settings
from daemon.core.errors import WorkerExit
from daemon.core.records import WAITING_STATES, IntakeReport, State
from daemon.jobs import inbox, ledger, store
from daemon.jobs.inbox import Settling
from daemon.jobs.store import Found
from daemon.service import assigning
from daemon.service.context import Context
from daemon.service.settling import end as end_job
from daemon.service.settling import fail

MAX_CRASHES = 3  # of intake on one file, before the file is given up
ENVIRONMENT_RETRY_SECONDS = 10.0
DISK_RETRY_SECONDS = 3.0
LOOK_SECONDS = 0.1  # at reports that are there already, in one round of the loop


class Taking:
    """The inbox step. One intake process at a time; the order is that of the queue."""

    def __init__(self, context: Context, wake: Callable[[], None]) -> None:
        self._context, self._wake = context, wake
        self._settling = Settling()
        self._reported: set[str] = set()  # things in the inbox that are no files
        self._checked: set[str] = set()  # jobs whose report has been acted on
        self._read: set[str] = set()  # jobs that this daemon has let intake read
        self._crashes: dict[str, int] = {}
        self._running: tuple[Found, asyncio.subprocess.Process, asyncio.Task[bytes]] | None = None
        self._not_before = 0.0
        self.unsettled = False  # something in the inbox is not at rest yet

    def has_checked(self, job: str) -> bool:
        """Whether this waiting job was read and found good."""
        return job in self._checked and job not in self._context.to_read_again

    async def step(self) -> None:
        self._take_in()
        await self._finish_intake()
        if self._running is None and not self._context.ending:
            await self._begin_intake()

    @property
    def busy(self) -> bool:
        return self._running is not None

    async def close(self) -> None:
        """End the intake process; what it had not finished is read anew at the next start."""
        if self._running:
            _, process, task = self._running
            if process.returncode is None:
                process.kill()
            await task
            self._running = None

    # ---- files -> jobs ----

    def _take_in(self) -> None:
        context = self._context
        self.unsettled = False
        inbox.clear_abandoned(context.workspace)
        for found in inbox.finish_taking_in(context.workspace):
            context.tracker.event("taken_in", f"{found.job.file} waits (after an interruption)", job=found.id)
        for item in inbox.dropped(context.workspace):
            unusable = inbox.unusable(item.path)
            if unusable:
                self._report_once(str(item.path), f"{store.printable(item.path.name)} is {unusable}; it is left there")
            elif self._settling.settled(item.path, context.settings.settle_seconds):
                self._make_job(item)
            else:
                self.unsettled = True

    def _make_job(self, item: inbox.Dropped) -> None:
        try:
            found = inbox.take_in(self._context.workspace, item)
        except FileNotFoundError:
            return  # taken away in the same moment
        where = (
            f"waits with priority {found.job.priority}"
            if found.state in WAITING_STATES
            else f"failed: {found.job.reason}"
        )
        self._context.tracker.event("taken_in", f"{found.job.file} {where}", job=found.id)

    def _report_once(self, path: str, message: str) -> None:
        if path not in self._reported:
            self._reported.add(path)
            self._context.tracker.event("left_alone", message)

    # ---- jobs -> reports ----

    async def _begin_intake(self) -> None:
        waiting = {state: store.names(self._context.workspace, state) for state in WAITING_STATES}
        self._checked &= {name for names in waiting.values() for name in names}
        self._checked -= self._context.to_read_again
        self._context.to_read_again.clear()
        unchecked = [(s, n) for s, names in waiting.items() for n in names if n not in self._checked]
        if not unchecked:
            if self._context.waits_for_disk:
                self._context.clear("intake")  # nothing waits to be read, so nothing waits for room
            return
        trained, until = ledger.trained(self._context.workspace), time.monotonic() + LOOK_SECONDS
        for state, name in unchecked:
            found = store.look(self._context.workspace, state, name)
            if found is None:
                continue
            report = read_report(found)
            if found.job.reason is not None:
                self._put_back_by_hand(found)
                report = None
            if report is None:
                # In the order of the queue: where the first cannot be read now, the others wait with it.
                if time.monotonic() >= self._not_before and "base_model" not in self._context.troubles:
                    await self._start(found)
                return
            self._act_on(found, report, trained)
            if time.monotonic() > until:  # others want the daemon too
                self._wake()
                return

    def _put_back_by_hand(self, found: Found) -> None:
        """A job that had ended and lies here again was moved by a person: that is a retry, and it is read anew."""
        files.remove(found.report)
        assigning.thaw(self._context.workspace, found.id)
        found.job.model_copy(update={"reason": None, "remedy": None}).save(found.folder / store.RECORD)
        self._context.tracker.event("retry", f"{found.job.file} was put back by hand", job=found.id)

    async def _start(self, found: Found) -> None:
        self._context.tracker.event("reading", f"{found.job.file} is read and checked", job=found.id)
        settings = assigning.job_settings(self._context.workspace, found, self._context.settings)
        process = await self._spawn(settings, str(found.folder))
        task = asyncio.create_task(_output(process))
        task.add_done_callback(lambda _: self._wake())
        self._running = (found, process, task)
        self._read.add(found.id)

    async def read_holdout(self) -> bool:
        """Tokenise the holdout as it is now; whether that went well."""
        process = await self._spawn(self._context.settings)
        output = await _output(process)
        if process.returncode == WorkerExit.BAD_CONFIG:
            self._blame_environment(output)
        return process.returncode == 0

    async def _spawn(self, settings: Settings, *job: str) -> asyncio.subprocess.Process:
        # The settings in force are handed over: config.json may be broken at this moment.
        workspace, given = self._context.workspace, settings.model_dump_json(exclude_unset=True)
        # By number: a daemon that is killed while Python starts there is not the parent any more.
        words = ("--parent", str(os.getpid()), "--settings", given, str(workspace.root), *job)
        with (workspace.logs / "intake.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "daemon.data.intake", *words),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )

    async def _finish_intake(self) -> None:
        if self._running is None or not self._running[2].done():
            return
        found, process, task = self._running
        self._running = None
        if process.returncode == WorkerExit.BAD_CONFIG:
            self._blame_environment(task.result())
        elif process.returncode != 0:
            self._count_crash(found, process.returncode)
        else:
            self._context.clear("intake")

    def _act_on(self, found: Found, report: IntakeReport, trained: dict[str, str]) -> None:
        if not report.usable:
            fail(self._context, found, report.reason or "not usable", report.remedy)
            return
        if self.park_if_trained(found, report, trained):
            return
        self._checked.add(found.id)
        if found.id in self._read:  # else an earlier daemon has said it
            what = f"{report.rows} rows, {report.tokens} tokens{report.left_out()}; {report.estimated_steps} updates"
            self._context.tracker.event("checked", f"{found.job.file}: {what}", job=found.id, warnings=report.warnings)

    def park_if_trained(self, found: Found, report: IntakeReport | None, trained: dict[str, str]) -> bool:
        """Whether the same content was trained before: then the job is parked. Asked at its turn too: two may wait."""
        known = None if found.job.again or report is None else trained.get(report.sha256)
        if known in (None, found.id):
            return False
        remedy = f"train it once more on purpose: training_queue retry {found.id} --again"
        if (self._context.workspace.state(State.SKIPPED) / known).is_dir():
            remedy = f"train the rest of it: training_queue retry {known}; or {remedy}"
        end_job(self._context, found, State.FAILED, f"the same content was trained before, as {known}", remedy)
        return True

    def _blame_environment(self, output: bytes) -> None:
        said = json.loads(output)
        wait = DISK_RETRY_SECONDS if said["reason"] == "disk" else ENVIRONMENT_RETRY_SECONDS
        self._not_before = time.monotonic() + wait
        self._context.hold("intake", said["reason"], said["message"], said["remedy"])

    def _count_crash(self, found: Found, code: int | None) -> None:
        crashes = self._crashes[found.id] = self._crashes.get(found.id, 0) + 1
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        self._context.tracker.event("intake_crashed", f"reading {found.job.file} ended with {how}", job=found.id)
        if crashes >= MAX_CRASHES:
            here = store.find(self._context.workspace, found.id)
            fail(self._context, here, f"reading the file crashed {crashes} times ({how})", "see logs/intake.log")


def read_report(found: Found) -> IntakeReport | None:
    """The job's report, or None where it was not read yet; a damaged report is made anew."""
    try:
        return IntakeReport.load(found.report)
    except ValueError:
        files.remove(found.report)
        return None


async def _output(process: asyncio.subprocess.Process) -> bytes:
    output, _ = await process.communicate()
    return output
