"""The daemon: start, the loop of named steps, stop."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from daemon.core import config, files
from daemon.core.errors import BadConfig, DaemonError, Exit, Locked
from daemon.core.heartbeat import Beat
from daemon.core.paths import Attempt, Workspace
from daemon.core.records import WAITING_STATES, Assignment, Control, State, now
from daemon.jobs import inbox, store
from daemon.jobs.recovery import Action, decide
from daemon.models import checkpoints, trash
from daemon.service import assigning, settling, wishes
from daemon.service.context import Context
from daemon.service.logs import set_up_logging
from daemon.service.publishing import Publishing
from daemon.service.runner import Runner
from daemon.service.taking import Taking
from daemon.service.tracker import Tracker

FOLLOW_SECONDS = 0.5  # between two looks while a worker runs
SOON_SECONDS = 0.05  # between two looks while something is just happening
GRACE_SECONDS = 20.0  # for a worker without progress, from the wish to end until SIGKILL


def run(workspace: Workspace, once: bool = False) -> int:
    """Run the daemon of a workspace until it is stopped; `once`: obey wishes, publish, end. Returns the exit code."""
    try:
        settings, _ = config.load(workspace.config)
        for folder in workspace.folders():
            files.make_folder(folder)
        lock = hold_workspace(workspace)
    except DaemonError as error:
        print(f"error: {error.message}\n  remedy: {error.remedy}", file=sys.stderr)
        return int(error.exit)
    set_up_logging(workspace.logs, quiet=once)
    lock.describe({"pid": os.getpid(), "since": now()})
    daemon = Daemon(workspace, settings)
    again = asyncio.run(daemon.once() if once else daemon.run())
    lock.release()
    if again:
        logging.shutdown()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return int(Exit.GOOD)


def hold_workspace(workspace: Workspace) -> files.Lock:
    """The lock that makes this process the one daemon of the workspace."""
    try:
        return files.Lock(workspace.daemon_lock)
    except BlockingIOError:
        holder = files.lock_holder(workspace.daemon_lock) or {}
        raise Locked(
            f"Another daemon (process {holder.get('pid', 'unknown')}) runs on {workspace.root}.",
            "use it, or end it first with: training_controller stop --now",
        ) from None


class Daemon:
    """One workspace's daemon. The disk is its memory; every step looks there and does what is next."""

    def __init__(self, workspace: Workspace, settings: config.Settings) -> None:
        self._workspace = workspace
        self._events = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        runner = Runner(workspace, self.wake)
        self._context = Context(workspace, settings, runner, Tracker(workspace))
        self._taking = Taking(self._context, self.wake)
        self._publishing = Publishing(self._context)
        self._terminating = 0  # SIGTERMs received
        self._again = False
        self._last_progress: tuple[float, Beat | None] = (time.monotonic(), None)
        self.steps: dict[str, Callable[[], Awaitable[None]]] = {
            "obey wishes": lambda: wishes.obey(self._context),
            "take in": self._taking.step,
            "settle what ended": lambda: settling.settle(self._context),
            "start next": self._start_next,
            "publish": self._publishing.step,
        }

    # ---- life ----

    async def run(self) -> bool:
        """Start, loop, stop. Returns whether the daemon is to be executed anew (SIGHUP)."""
        observer = self._start()
        try:
            while not self._over():
                self._events.clear()
                await self._round(self.steps)
                await self._wait()
        finally:
            observer.stop()
        await self._stop()
        return self._again

    async def once(self) -> bool:
        """Obey the wishes that lie there, publish, end."""
        self._loop = asyncio.get_running_loop()
        self._context.reload_config()
        names = ("obey wishes", "settle what ended", "publish")
        deadline = time.monotonic() + settling_seconds()
        while True:
            await self._round({name: self.steps[name] for name in names})
            if not wishes.open_wishes(self._context) or time.monotonic() > deadline:
                break
            await asyncio.sleep(SOON_SECONDS)
        if self._context.desired.stop:
            self._context.wish(stop=None)
        await self._publishing.publish_stopped()
        return False

    def wake(self) -> None:
        """Look again now. Safe from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to wake
                self._loop.call_soon_threadsafe(self._events.set)

    def _start(self) -> BaseObserver:
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_sigterm)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_sighup)
        self._context.reload_config()
        trash.clear_leftovers(self._workspace)
        for found in inbox.finish_taking_in(self._workspace):
            self._context.tracker.event("taken_in", f"{found.job.file} waits (after an interruption)", job=found.id)
        self._context.tracker.event("daemon_started", f"the daemon runs on {self._workspace.root}", pid=os.getpid())
        return watch(self._workspace, self.wake)

    def _over(self) -> bool:
        return self._again or self._context.ending or (self._terminating > 0 and not self._context.runner.alive())

    async def _round(self, steps: dict[str, Callable[[], Awaitable[None]]]) -> None:
        for name, step in steps.items():
            try:
                await step()
                self._publishing.beats[name] = now()
            except Exception as error:  # one step's failure must not end the daemon; it is said and tried again
                logging.getLogger("daemon").exception("step %s failed", name)
                self._context.hold("bug", f"{name}: {type(error).__name__}: {error}", "see the day's log in logs/")
            else:
                self._forgive(name)
        self._insist()

    def _forgive(self, name: str) -> None:
        error = self._context.error
        if error and error["class"] == "bug" and error["message"].startswith(f"{name}:"):
            self._context.clear("bug")

    async def _wait(self) -> None:
        """Until something happens; the timer is the net under the file events."""
        context = self._context
        context.runner.rest()
        if context.runner.impatient or wishes.open_wishes(context) or self._terminating:
            seconds = SOON_SECONDS
        elif self._taking.unsettled:
            seconds = max(SOON_SECONDS, min(context.settings.settle_seconds / 4, FOLLOW_SECONDS))
        elif context.runner.alive() or self._taking.busy:
            seconds = FOLLOW_SECONDS
        else:
            seconds = context.settings.poll_interval
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._events.wait(), seconds)

    async def _stop(self) -> None:
        await self._taking.close()
        self._context.runner.close()
        if self._again:
            self._context.tracker.event(
                "daemon_restarts", "SIGHUP: the daemon executes itself anew; the training goes on"
            )
            return
        if self._context.desired.stop:
            self._context.wish(stop=None)
        if self._workspace.stop_file.exists():
            files.remove(self._workspace.stop_file)
        self._context.tracker.event("daemon_stopped", "the daemon has ended", pid=os.getpid())
        await self._publishing.publish_stopped()

    # ---- signals ----

    def _on_sigterm(self) -> None:
        self._terminating += 1
        self._context.ending = False
        if self._terminating > 1:
            self._context.runner.send(signal.SIGKILL)
        self._last_progress = (time.monotonic(), None)
        self._events.set()

    def _on_sighup(self) -> None:
        self._again = True
        self._events.set()

    def _insist(self) -> None:
        """Asked to end: tell the worker to save, wait as long as it makes progress, then insist."""
        attempt = self._context.runner.attempt()
        leaving = self._terminating > 0 or self._context.desired.paused or self._context.desired.stop == "now"
        if attempt is None or not (leaving or self._context.desired.skip == attempt.job):
            self._last_progress = (time.monotonic(), None)
            return
        if not attempt.control.exists():
            Control(action="stop", reason="SIGTERM").save(attempt.control)
        beat = self._context.runner.beat()
        if beat != self._last_progress[1]:
            self._last_progress = (time.monotonic(), beat)
        elif time.monotonic() - self._last_progress[0] > GRACE_SECONDS:
            self._context.tracker.event("worker_killed", "the worker did not end when asked", job=attempt.job)
            self._context.runner.send(signal.SIGKILL)

    # ---- start next ----

    async def _start_next(self) -> None:
        """Hand the next attempt to a worker, where none runs and nothing stands against it."""
        context = self._context
        context.reload_config()
        if self._terminating or context.blocked or context.runner.alive():
            return
        if self._taking.busy or self._taking.unsettled or store.names(self._workspace, State.PROCESSING):
            await context.runner.ensure_server()
        found = store.processing(self._workspace)
        if found is None:
            await self._claim()
        elif self._ready_for_another(found):
            await self._begin(found, context.settings)

    def _ready_for_another(self, found: store.Found) -> bool:
        """Whether the job in processing waits for a new attempt: its newest one has ended, and not for good."""
        attempt = self._workspace.run(found.id).newest_attempt()
        if attempt is None:
            return True
        ended = self._context.runner.ending(attempt)
        if ended is None:
            return False
        held = self._context.error and self._context.error["job"] == found.id
        decision = decide(*ended, settling.attempts_without_progress(self._context, found))
        if decision.action is Action.PAUSE:
            return self._config_is_newer(attempt)
        return decision.action is Action.GO_ON and not held

    def _config_is_newer(self, attempt: Attempt) -> bool:
        """Whether somebody has changed config.json since an attempt found it wrong."""
        newer = self._workspace.config.stat().st_mtime > attempt.outcome.stat().st_mtime
        if newer:
            files.remove(self._workspace.run(attempt.job).config)  # freeze today's settings
            self._context.clear("config")
        return newer

    async def _claim(self) -> None:
        """Take the first waiting job that intake has found good, once the workspace is fit for it."""
        if self._context.desired.stop == "after_file":
            return
        found = next(store.iterate(self._workspace, *WAITING_STATES), None)
        if found is None or not found.report.exists():
            return
        await self._context.runner.ensure_server()
        settings = assigning.job_settings(self._workspace, found, self._context.settings)
        try:
            stale = await asyncio.to_thread(assigning.stale, self._workspace, found, settings)
        except DaemonError as error:
            self._context.hold("config", error.message, error.remedy)
            return
        if stale:
            self._context.tracker.event("reading_anew", f"{found.job.file} is read anew: {stale}", job=found.id)
            files.remove(found.report)
            self._taking.forget(found.id)
            self.wake()
            return
        await self._begin(found, settings)

    async def _begin(self, found: store.Found, settings: config.Settings) -> None:
        """Preflight, assignment, move to processing, hand over; in this order, so that every crash can be read."""
        context, workspace = self._context, self._workspace
        settings = assigning.job_settings(workspace, found, settings)
        try:
            assigning.check_model(workspace, settings)
            parent = await asyncio.to_thread(assigning.find_parent, workspace, settings)
        except BadConfig as error:
            context.hold("config", error.message, error.remedy)
            return
        except DaemonError as error:
            context.hold("model", error.message, error.remedy)
            return
        context.clear("config")
        context.clear("model")
        resume, problems = await asyncio.to_thread(checkpoints.resume_point, workspace, found.id, parent.name)
        for problem in problems:
            context.tracker.event("checkpoint_damaged", problem, job=found.id)
        for name in checkpoints.clear_the_way(workspace, resume):
            context.tracker.event("set_aside", f"{name} is not in the lineage; it lies in models/trash", job=found.id)
        assigning.freeze(workspace, found, settings)
        attempt = assigning.assign(workspace, found, settings, parent, resume)
        if found.state is not State.PROCESSING:
            found = store.move(workspace, found, State.PROCESSING)
        start = Assignment.load(attempt.assignment)
        assert start
        where = f"from {resume.name}" if resume else f"from step {start.base_step}"
        context.tracker.event("attempt_started", f"{found.job.file}: attempt {attempt.number} {where}", job=found.id)
        await context.runner.hand_over(attempt)


def settling_seconds() -> float:
    """How long `--once` waits for what was wished for."""
    return 60.0


class _Wake(FileSystemEventHandler):
    """Any change in a watched folder wakes the loop; which one, the loop sees for itself."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in ("opened", "closed_no_write"):
            self._wake()


def watch(workspace: Workspace, wake: Callable[[], None]) -> BaseObserver:
    """File events for what people and other processes drop."""
    observer = Observer()
    for folder in (workspace.inbox, workspace.wishes, *(workspace.state(s) for s in WAITING_STATES)):
        observer.schedule(_Wake(wake), str(folder))
    observer.start()
    return observer
