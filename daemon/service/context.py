"""What the steps of the daemon share: the workspace, the settings in force, what was wished for, and the runner."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from daemon.core import config, room
from daemon.core.config import Settings
from daemon.core.errors import BadConfig
from daemon.core.paths import Attempt, Workspace
from daemon.core.records import Desired, now
from daemon.jobs.recovery import Action, Decision, Ending
from daemon.service.judge import Judge
from daemon.service.runner import Runner
from daemon.service.tracker import Tracker


@dataclass(frozen=True)
class Trouble:
    """Something that a person or time has to mend."""

    error: dict[str, Any]  # as the status shows it
    blocks: bool  # the queue waits until it is over
    event: str  # under which it is said


class Context:
    """The daemon's memory between two looks at the disk; all of it can be made again from there."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        runner: Runner,
        tracker: Tracker,
        wake: Callable[[], None],
    ) -> None:
        self._wake = wake
        self.workspace, self.settings, self.runner, self.tracker = workspace, settings, runner, tracker
        self.judge = Judge(wake)
        self.desired = _load_desired(workspace)
        self.troubles: dict[str, Trouble] = {}
        self.ending = False  # the daemon itself is to end
        self.leaving = False  # it got SIGTERM: it ends once the worker has
        self.once = False  # it obeys and ends; no attempt is started
        self.begun: set[str] = set()  # wishes that are being obeyed; they cannot expire any more
        self.to_read_again: set[str] = set()  # jobs whose report was taken away
        self._announced: set[Attempt] = set()
        self._config_seen: tuple[int, int] | None = None

    def wish(self, **changes: Any) -> None:
        """Change what is wished for, durably, before anything is done about it."""
        desired = self.desired.model_copy(update=changes)
        if desired != self.desired:
            desired.save(self.workspace.desired)
            self.desired = desired

    def hold(
        self,
        name: str,
        kind: str,
        message: str,
        remedy: str | None,
        job: str | None = None,
        *,
        blocks: bool = True,
        event: str = "error",
    ) -> None:
        """Show a trouble until it is cleared under the same name; where it blocks, the queue waits as long."""
        before = self.troubles.get(name)
        if before is None or before.error["message"] != message:
            self.tracker.event(event, message, job=job, remedy=remedy, reason=kind)
            error = {"class": kind, "message": message, "remedy": remedy, "at": now(), "job": job}
            self.troubles[name] = Trouble(error, blocks, event)

    def clear(self, name: str) -> None:
        """The trouble of this name is over."""
        trouble = self.troubles.pop(name, None)
        if trouble:
            self.tracker.event(f"{trouble.event}_over", f"over: {trouble.error['message']}", job=trouble.error["job"])

    @property
    def blocking(self) -> dict[str, Any] | None:
        """The error for which the queue waits, if any."""
        return next((t.error for t in self.troubles.values() if t.blocks), None)

    @property
    def error(self) -> dict[str, Any] | None:
        """The error to be shown: one that blocks before one that does not."""
        return self.blocking or next((t.error for t in self.troubles.values()), None)

    def look_at_disk(self, refused: str | None = None) -> None:
        """Hold the queue as long as the disk takes nothing; `refused`: what it said to a step, in words."""
        said = room.lacking(self.workspace.root) or refused
        if said:
            self.hold("disk", "disk", f"the disk of {self.workspace.root} {said}", room.REMEDY)
        else:
            self.clear("disk")

    @property
    def waits_for_disk(self) -> bool:
        """Whether some trouble is over once the disk has room: nothing but another look tells."""
        return any(trouble.error["class"] == "disk" for trouble in self.troubles.values())

    def read_again(self, job: str) -> None:
        """Let intake look at this job's file once more."""
        self.to_read_again.add(job)
        self._wake()

    def announce_ending(self, attempt: Attempt, ending: Ending, reason: str, decision: Decision) -> None:
        """Say once how an attempt ended."""
        if attempt in self._announced:
            return
        self._announced.add(attempt)
        then = {Action.GO_ON: "goes on from its newest checkpoint", Action.GATE: "goes to the gate"}
        what = then.get(decision.action, decision.action.value)
        self.tracker.event(
            "attempt_ended",
            f"attempt {attempt.number} ended: {ending.value}: {reason}; the job {what}",
            job=attempt.job,
            attempt=attempt.number,
            ending=ending.value,
        )

    def reload_config(self) -> None:
        """Use a changed config.json; keep the last good one, aloud, where the new one is refused."""
        try:
            info = self.workspace.config.stat()
            seen = (info.st_mtime_ns, info.st_size)
        except FileNotFoundError:
            seen = (0, 0)
        if seen == self._config_seen:
            return
        first = self._config_seen is None
        self._config_seen = seen
        try:
            self.settings, notices = config.load(self.workspace.config)
        except BadConfig as error:
            message = f"{error.message} The settings before it stay in force."
            self.hold("config_file", "config", message, error.remedy, blocks=False)
            return
        self.clear("config_file")
        for notice in notices:
            self.tracker.event("notice", notice)
        if not first:
            self.tracker.event("config_changed", "config.json has changed; it holds from the next job on")

    @property
    def blocked(self) -> bool:
        """Whether no new attempt may start."""
        return self.desired.paused or self.desired.stop == "now" or self.ending


def _load_desired(workspace: Workspace) -> Desired:
    try:
        return Desired.load(workspace.desired) or Desired()
    except ValueError:
        return Desired()
