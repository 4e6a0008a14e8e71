"""The daemon: start, the loop of named steps, stop."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

from watchdog.observers.api import BaseObserver

from daemon.core import config, files, locks, room
from daemon.core.errors import DaemonError, Exit, Locked
from daemon.core.paths import Workspace
from daemon.core.records import now
from daemon.models import trash
from daemon.service import rebuilding, settling, wishes
from daemon.service.context import Context
from daemon.service.logs import set_up_logging
from daemon.service.publishing import Publishing
from daemon.service.runner import Runner
from daemon.service.starting import Starting
from daemon.service.stopping import Stopping
from daemon.service.taking import Taking
from daemon.service.tracker import Tracker
from daemon.service.watching import watch

FOLLOW_SECONDS = 0.5  # between two looks while a worker runs
PACKAGE = "training-daemon"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SOON_SECONDS = 0.05  # between two looks while something is just happening
DISK_SECONDS = 1.0  # between two looks while the disk takes nothing
BEGINNING_SECONDS = 5.0  # after the start, in which the threads that hear file events may not listen yet


def run(workspace: Workspace, once: bool = False) -> int:
    """Run the daemon of a workspace until it is stopped; `once`: obey wishes, publish, end. Returns the exit code."""
    try:
        settings, _ = config.load(workspace.config)
        files.make_folder(workspace.status_folder)
        lock = hold_workspace(workspace)
        for folder in workspace.folders():
            files.make_folder(folder)
        trust_the_disk(workspace)
        lock.describe({"pid": os.getpid(), "since": now()})
    except DaemonError as error:
        return _complain(error.message, error.remedy, error.exit)
    except OSError as error:
        if (said := room.refusal(error)) is None:
            raise
        return _complain(f"The disk of {workspace.root} {said}.", room.REMEDY, Exit.PROBLEM)
    set_up_logging(workspace.logs, quiet=once)
    daemon = Daemon(workspace, settings)
    again = asyncio.run(daemon.once() if once else daemon.run())
    lock.release()
    if again:
        logging.shutdown()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return int(Exit.GOOD)


def _complain(message: str, remedy: str, code: Exit) -> int:
    print(f"error: {message}\n  remedy: {remedy}", file=sys.stderr)
    return int(code)


def hold_workspace(workspace: Workspace) -> locks.Lock:
    """The lock that makes this process the one daemon of the workspace."""
    try:
        return locks.Lock(workspace.daemon_lock)
    except BlockingIOError:
        holder = locks.lock_holder(workspace.daemon_lock) or {}
        raise Locked(
            f"Another daemon (process {holder.get('pid', 'unknown')}) runs on {workspace.root}.",
            "use it, or end it first with: training_controller stop --now",
        ) from None


def trust_the_disk(workspace: Workspace) -> None:
    """Before anything that lies there is acted on: a killed daemon may have renamed what it had no time to sync.

    A loss of power could still undo that rename, and not what is done because of it.
    """
    try:
        files.sync_filesystem(workspace.root)
    except OSError as error:
        raise DaemonError(
            f"The disk of {workspace.root} does not take what was written to it: {error.strerror}.",
            "see the kernel's log about the disk, then start the daemon again",
        ) from None


class Daemon:
    """One workspace's daemon. The disk is its memory; every step looks there and does what is next."""

    def __init__(self, workspace: Workspace, settings: config.Settings) -> None:
        self._workspace = workspace
        self._events = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        runner = Runner(workspace, self.wake)
        self._context = Context(workspace, settings, runner, Tracker(workspace), self.wake)
        self._taking = Taking(self._context, self.wake)
        self._starting = Starting(self._context, self._taking)
        self._publishing = Publishing(self._context)
        self._stopping = Stopping(self._context, lambda: self._publishing.longest_save_seconds)
        self._began = time.monotonic()
        self._terminating = 0  # SIGTERMs received
        self._refused: str | None = None  # what the disk said to a step of the last round
        self._again = False
        self.steps: dict[str, Callable[[], Awaitable[None]]] = {
            "obey wishes": lambda: wishes.obey(self._context),
            "take in": self._taking.step,
            "settle what ended": lambda: settling.settle(self._context),
            "start next": lambda: self._starting.step(stopping=self._terminating > 0),
            "end the worker": lambda: self._stopping.step(self._terminating),
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
                if not self._over():
                    await self._wait()
        finally:
            observer.stop()
        await self._stop()
        return self._again

    async def once(self) -> bool:
        """Obey the wishes that lie there, publish, end."""
        self._loop = asyncio.get_running_loop()
        self._context.once = True
        self._context.reload_config()
        rebuilding.look_after_ledger(self._context)
        names = ("obey wishes", "settle what ended", "end the worker", "publish")
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
        # Signals are for this thread alone, here and in all that start from here: one that another thread took while
        # this one ends would be lost.
        block_signals()
        self._loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix="aside", initializer=block_signals))
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_sigterm)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_sighup)
        self._context.reload_config()
        self._starting.look_for_model()
        if not self._context.runner.alive():  # a worker that is adopted writes there too
            trash.clear_leftovers(self._workspace.status_folder)
        self._context.tracker.event(
            "daemon_started", f"the daemon runs on {self._workspace.root}", pid=os.getpid(), version=version(PACKAGE)
        )
        rebuilding.look_after_ledger(self._context)
        observer = watch(self._workspace, self.wake)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return observer

    def _over(self) -> bool:
        runner = self._context.runner
        unknown = self._terminating > 1 and runner.holder() is None  # whoever holds the lock does not say who he is
        ended = not runner.alive() or self._stopping.in_vain or unknown
        return self._again or self._context.ending or (self._terminating > 0 and ended)

    async def _round(self, steps: dict[str, Callable[[], Awaitable[None]]]) -> None:
        self._context.look_at_disk(self._refused)
        refused = [await self._try(name, step) for name, step in steps.items()]
        self._refused = next(filter(None, refused), None)

    async def _try(self, name: str, step: Callable[[], Awaitable[None]]) -> str | None:
        """One step's failure must not end the daemon; it is said and tried again. Returns what the disk said to it."""
        try:
            await step()
        except Exception as error:
            if said := room.refusal(error):
                return said
            logging.getLogger("daemon").exception("step %s failed", name)
            message = f"{name}: {type(error).__name__}: {error}"
            self._context.hold(f"step {name}", "bug", message, "see the day's log in logs/", blocks=False)
        else:
            if name in self.steps:
                self._publishing.beats[name] = now()
            self._context.clear(f"step {name}")
        return None

    async def _wait(self) -> None:
        """Until something happens; the timer is the net under the file events."""
        context = self._context
        context.runner.rest()
        if context.waits_for_disk or self._refused:  # not for events: each failed write makes some
            await asyncio.sleep(DISK_SECONDS)
            return
        if context.runner.impatient or wishes.open_wishes(context) or self._terminating:
            seconds = SOON_SECONDS
        elif self._taking.unsettled:
            seconds = max(SOON_SECONDS, min(context.settings.settle_seconds / 4, FOLLOW_SECONDS))
        elif context.runner.alive() or self._taking.busy or time.monotonic() - self._began < BEGINNING_SECONDS:
            seconds = FOLLOW_SECONDS
        else:
            seconds = context.settings.poll_interval
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._events.wait(), seconds)

    async def _stop(self) -> None:
        again = self._again
        if again:  # one that came unheard before the next life listens would end the process; so it waits for that
            block_signals()
        await self._taking.close()
        await self._context.judge.close()
        self._context.runner.server.close()
        self._again = again
        if again:
            if self._terminating:  # heard too late for this life
                os.kill(os.getpid(), signal.SIGTERM)
            self._context.tracker.event(
                "daemon_restarts", "SIGHUP: the daemon executes itself anew; the training goes on"
            )
            return
        wishes.answer_stops(self._context)
        await self._try("forget the stop", self._forget_stop)
        self._context.tracker.event("daemon_stopped", "the daemon has ended", pid=os.getpid())
        await self._try("publish", self._publishing.publish_stopped)

    async def _forget_stop(self) -> None:
        if self._context.desired.stop:
            self._context.wish(stop=None)
        if self._workspace.stop_file.exists():
            files.remove(self._workspace.stop_file)

    # ---- signals ----

    def _on_sigterm(self) -> None:
        self._terminating += 1
        self._again = False
        self._context.ending, self._context.leaving = False, True
        self._events.set()

    def _on_sighup(self) -> None:
        self._again = self._terminating == 0  # who was told to end does not begin anew
        self._events.set()


def block_signals() -> None:
    """Let this thread hear none of the signals that the daemon obeys; they wait until a thread does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def settling_seconds() -> float:
    """How long `--once` waits for what was wished for."""
    return 60.0
