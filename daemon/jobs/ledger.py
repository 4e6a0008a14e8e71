"""What was trained and how it ended: one line a job; a record that can be made again from manifests and folders."""

from daemon.core import files
from daemon.core.paths import Workspace
from daemon.core.records import LedgerLine


def lines(workspace: Workspace) -> list[LedgerLine]:
    """All lines, oldest first; the last line of a job counts."""
    return [LedgerLine.model_validate(line) for line in files.read_lines(workspace.ledger)]


def record(workspace: Workspace, line: LedgerLine) -> None:
    """Add a line, unless the job's last line says the same already: settling may be repeated after a crash."""
    before = next((x for x in reversed(lines(workspace)) if x.job == line.job), None)
    same = before is not None and before.model_copy(update={"at": line.at}) == line
    if not same:
        files.append_json(workspace.ledger, line)


def trained_as(workspace: Workspace, sha256: str) -> str | None:
    """The job in which this very content was trained and accepted, if any."""
    return next((x.job for x in lines(workspace) if x.sha256 == sha256 and x.outcome == "completed"), None)


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
