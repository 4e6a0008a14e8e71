"""Start next: preflight, assignment, move to processing, hand over; in this order, so that every crash can be read."""

import asyncio

from daemon.core import files, room
from daemon.core.attempts import Control
from daemon.core.config import Settings
from daemon.core.errors import BadConfig, BadData, DaemonError
from daemon.core.paths import Attempt
from daemon.core.records import WAITING_STATES, State, now
from daemon.data import suites
from daemon.jobs import inbox, ledger, order, store
from daemon.jobs.recovery import Action, Ending, decide
from daemon.jobs.store import Found
from daemon.models import checkpoints, trash
from daemon.service import assigning, going_back, progress, settling, skipping
from daemon.service.context import Context
from daemon.service.taking import Taking, read_report

SPARE_CHECKPOINTS = 2  # of free space, before a job that a full disk has ended goes on
LEAST_ROOM = 1 << 20  # and no less than this


class Starting:
    """Hands the next attempt to a worker, where none runs and nothing stands against it."""

    def __init__(self, context: Context, taking: Taking) -> None:
        self._context, self._taking = context, taking
        self._said: dict[str, str] = {}  # what each held-back job was said to wait for

    async def step(self, *, stopping: bool) -> None:
        context = self._context
        context.reload_config()
        self.look_for_model()
        if stopping or context.blocked or context.runner.alive() or "disk" in context.troubles:
            return
        found = store.processing(context.workspace)
        trains = found is not None and "approval" not in context.troubles  # a person may take days
        wanted = trains or self._taking.busy or self._taking.unsettled
        served = wanted and await self._served()
        if found is None:
            await self._claim()
        elif served and self._ready_for_another(found):
            await self._begin(found, context.settings)

    def look_for_model(self) -> None:
        """Say at once, not only when a file comes, that the base model is missing."""
        try:
            assigning.check_model(self._context.workspace, self._context.settings)
        except BadConfig as error:
            self._context.hold("base_model", "config", error.message, error.remedy)
        else:
            self._context.clear("base_model")

    async def _served(self) -> bool:
        """Whether an attempt may be handed to the fork server; says aloud why none can start."""
        served = await self._context.runner.ensure_server()
        failure = self._context.runner.server.failure
        if failure:
            message = f"The training process cannot start: {failure}"
            remedy = "see logs/fork_server.log and training_daemon doctor; it is tried again by itself"
            self._context.hold("fork_server", "environment", message, remedy)
        else:
            self._context.clear("fork_server")
        return served

    # ---- the job in processing ----

    def _ready_for_another(self, found: Found) -> bool:
        """Whether the job waits for a new attempt: its newest one has ended, and not for good."""
        attempt = self._context.workspace.run(found.id).newest_attempt()
        if attempt is None:
            return True
        ended = self._context.runner.ending(attempt)
        if ended is None:
            return False
        if self._context.desired.skip == found.id and not skipping.lacks_evaluation(self._context, found, attempt):
            return False  # it ended after `settle` has looked, and is skipped next
        decision = decide(*ended, progress.tally(self._context.workspace, found.id))
        # Settling has looked a moment ago, and may have found the attempt alive, or waited for word of its death.
        self._context.announce_ending(attempt, *ended, decision)
        if decision.action is Action.PAUSE:
            return self._mended(attempt, ended[0])
        return decision.action is Action.GO_ON

    def _mended(self, attempt: Attempt, ending: Ending) -> bool:
        """Whether what has stopped an attempt is over: the configuration was changed, or the disk has room again."""
        if ending is Ending.DISK_FULL:
            needed = max(SPARE_CHECKPOINTS * self._checkpoint_bytes(attempt.job), LEAST_ROOM)
            mended = room.lacking(self._context.workspace.current_model, needed) is None
        elif ending is Ending.OTHER_PROTOCOL:
            mended = attempt not in self._context.runner.handed  # it was another daemon's; this one has to try
        else:
            mended = self._context.workspace.config.stat().st_mtime > attempt.outcome.stat().st_mtime
            if mended:
                files.remove(self._context.workspace.run(attempt.job).config)  # so that today's settings are frozen
        if mended:
            self._context.clear("attempt")
        return mended

    def _checkpoint_bytes(self, job: str) -> int:
        """Of the newest checkpoint; before the first, as intake has estimated it."""
        newest = checkpoints.every(self._context.workspace)
        if newest:
            return sum(f.stat().st_size for f in newest[-1].rglob("*") if f.is_file())
        found = store.look(self._context.workspace, State.PROCESSING, job)
        report = read_report(found) if found else None
        return (report.checkpoint_bytes if report else None) or 0

    # ---- the next job ----

    async def _claim(self) -> None:
        """Take the first waiting job that may start and was found good, once the workspace is fit for it."""
        context = self._context
        if context.desired.stop == "after_file":
            return
        found = self._first_ready()
        if found is None or not self._taking.has_checked(found.id):
            return
        if self._taking.park_if_trained(found, read_report(found), ledger.trained(context.workspace)):
            return
        if not await self._served():
            return
        settings = assigning.job_settings(context.workspace, found, context.settings)
        try:
            stale = await asyncio.to_thread(assigning.stale, context.workspace, found, settings)
        except DaemonError as error:
            context.hold("preflight", "config", error.message, error.remedy)
            return
        if stale:
            context.tracker.event("reading_anew", f"{found.job.file} is read anew: {stale}", job=found.id)
            files.remove(found.report)
            context.read_again(found.id)
            return
        await self._begin(found, settings)

    def _first_ready(self) -> Found | None:
        """The first waiting job that may start; those that never will go to failed on the way."""
        workspace, time = self._context.workspace, now()
        for found in store.iterate(workspace, *WAITING_STATES):
            standing = order.standing(workspace, found, time)
            if standing.kind == "ready":
                return found
            if standing.kind == "never":
                settling.fail(self._context, found, standing.words, standing.remedy)
            else:
                self._wait_for(found, standing.words)
        return None

    def _wait_for(self, found: Found, words: str) -> None:
        """Say once what a job waits for, and hold on to the very job that it waits for once that is there."""
        if self._said.get(found.id) != words:
            self._said[found.id] = words
            self._context.tracker.event("waits", f"{found.job.file} waits {words}", job=found.id)
        pinned = inbox.pin_after(self._context.workspace, found.job)
        if pinned != found.job:
            pinned.save(found.folder / store.RECORD)

    async def _read_holdout(self, found: Found, settings: Settings) -> bool:
        """Tokenise the holdout as the job's frozen settings want it; whether it is there now."""
        if not await self._taking.read_holdout():
            return False
        if assigning.holdout_is_unread(self._context.workspace, settings):
            self._context.hold(
                "preflight",
                "config",
                f"{found.job.file} began with another model or max_length than config.json has now.",
                f"set them back (runs/{found.id}/config.yaml has them), or: training_controller skip",
                found.id,
            )
            return False
        return True

    async def _begin(self, found: Found, settings: Settings) -> None:
        context, workspace = self._context, self._context.workspace
        settings = assigning.job_settings(workspace, found, settings)
        try:
            assigning.check_model(workspace, settings)
            went_back = await going_back.look_after_model(context, found.id)
            parent = await asyncio.to_thread(assigning.find_parent, workspace, found.id, settings)
            assigning.check_kept_part(found, settings, parent)
        except BadData as error:
            settling.fail(context, found, error.message, error.remedy)
            return
        except DaemonError as error:
            kind = "config" if isinstance(error, BadConfig) else "model"
            context.hold("preflight", kind, error.message, error.remedy)
            return
        if went_back and found.state is not State.PROCESSING:
            return  # what has to be trained again comes first: it is older
        if assigning.holdout_is_unread(workspace, settings) and not await self._read_holdout(found, settings):
            return
        if suites.are_unread(workspace, settings):
            await self._taking.read_holdout()  # what becomes of it is said in the results; nothing waits for it
        context.clear("preflight")
        context.tracker.event("preparing", f"{found.job.file}: an attempt is prepared", job=found.id)
        trash.clear_leftovers(workspace.current_model)  # no worker lives here now
        resume, problems = await asyncio.to_thread(checkpoints.resume_point, workspace, found.id, parent.name)
        for problem in problems:
            context.tracker.event("checkpoint_damaged", problem, job=found.id)
        for name in checkpoints.clear_the_way(workspace, resume):
            context.tracker.event("set_aside", f"{name} is not in the lineage; it lies in models/trash", job=found.id)
        assigning.freeze(workspace, found, settings)
        attempt = assigning.assign(workspace, found, settings, parent, resume)
        if found.state is not State.PROCESSING:
            found = store.move(workspace, found, State.PROCESSING)
        if context.desired.skip == found.id:
            Control(action="keep", reason="skip").save(attempt.control)  # it has only to be evaluated
        first = f"its update {parent.part.steps + 1}" if parent.part.steps else "its first row"
        where = f"from {resume.name}" if resume else f"from {first}, at step {parent.base_step + parent.part.steps}"
        words = f"{found.job.file}: attempt {attempt.number} {where}"
        context.tracker.event("attempt_started", words, job=found.id, attempt=attempt.number)
        await context.runner.hand_over(attempt)
