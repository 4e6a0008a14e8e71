"""What the steps of the daemon share: the workspace, the settings in force, what was wished for, and the runner."""

from collections.abc import Callable
from typing import Any

from daemon.core import config
from daemon.core.config import Settings
from daemon.core.errors import BadConfig
from daemon.core.paths import Attempt, Workspace
from daemon.core.records import Desired, now
from daemon.jobs.recovery import Action, Decision, Ending
from daemon.service.runner import Runner
from daemon.service.tracker import Tracker


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
        self.desired = _load_desired(workspace)
        self.error: dict[str, Any] | None = None
        self.ending = False  # the daemon itself is to end
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

    def hold(self, reason: str, message: str, remedy: str | None, job: str | None = None) -> None:
        """Show an error that keeps the queue waiting until a person or the machine has mended it."""
        if self.error is None or (self.error["message"], self.error["job"]) != (message, job):
            self.tracker.event("error", message, job=job, remedy=remedy, reason=reason)
            self.error = {"class": reason, "message": message, "remedy": remedy, "at": now(), "job": job}

    def clear(self, reason: str) -> None:
        """The error of this class is over."""
        if self.error and self.error["class"] == reason:
            self.tracker.event("error_over", f"over: {self.error['message']}", job=self.error["job"])
            self.error = None

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
            self.hold("config_file", f"{error.message} The settings before it stay in force.", error.remedy)
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
