"""What was trained and how it ended: one line a job; a record that can be made again from manifests and folders."""

from daemon.core import files
from daemon.core.paths import Workspace
from daemon.core.records import LedgerLine, State, now

UNDONE = "undone"  # the outcome of a job whose model was lost; it waits again


def lines(workspace: Workspace) -> list[LedgerLine]:
    """All lines, oldest first; the last line of a job counts."""
    return [LedgerLine.model_validate(line) for line in files.read_lines(workspace.ledger)]


def record(workspace: Workspace, line: LedgerLine) -> None:
    """Add a line, unless the job's last line says the same already: settling may be repeated after a crash."""
    before = next((x for x in reversed(lines(workspace)) if x.job == line.job), None)
    same = before is not None and before.model_copy(update={"at": line.at}) == line
    if same:
        # It can be read, but may never have reached the disk: the writer was killed before its fsync, or that failed.
        # After a failure another fsync of that file proves nothing; a new file does.
        files.write(workspace.ledger, workspace.ledger.read_bytes())
    else:
        files.append_json(workspace.ledger, line)


def undo(workspace: Workspace, jobs: list[str], reason: str) -> None:
    """Say of accepted jobs that no model contains them any more."""
    for before in _last_lines(workspace).values():
        if before.job in jobs:
            record(workspace, before.model_copy(update={"outcome": UNDONE, "reason": reason, "at": now()}))


def accepted(workspace: Workspace) -> dict[str, str]:
    """The checkpoint with which each job was accepted, oldest first; of those that were not undone."""
    last = _last_lines(workspace).values()
    return {line.job: line.checkpoint for line in last if line.outcome == State.COMPLETED and line.checkpoint}


def trained_as(workspace: Workspace, sha256: str) -> str | None:
    """The job in which this very content was trained and accepted, if any."""
    return trained(workspace).get(sha256)


def trained(workspace: Workspace) -> dict[str, str]:
    """The content of each job that was trained and accepted, by hash, and the first job that it was."""
    last = reversed(_last_lines(workspace).values())
    return {line.sha256: line.job for line in last if line.sha256 and line.outcome == State.COMPLETED}


def _last_lines(workspace: Workspace) -> dict[str, LedgerLine]:
    """The line of each job that counts, in their order."""
    found: dict[str, LedgerLine] = {}
    for line in lines(workspace):
        found.pop(line.job, None)
        found[line.job] = line
    return found


def best_loss(workspace: Workspace, holdout_key: str | None) -> float | None:
    """The lowest holdout loss among the accepted jobs, measured on this very holdout."""
    losses = [
        x.validation_loss
        for x in lines(workspace)
        if x.outcome == "completed" and x.holdout_key == holdout_key and x.validation_loss is not None
    ]
    return min(losses, default=None) if holdout_key else None


def accepted_loss(workspace: Workspace, job: str, holdout_key: str | None) -> float | None:
    """The holdout loss with which a job was accepted, measured on this very holdout."""
    losses = [x.validation_loss for x in lines(workspace) if x.job == job and x.holdout_key == holdout_key]
    return losses[-1] if losses and holdout_key else None
