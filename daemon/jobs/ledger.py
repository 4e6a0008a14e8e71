"""What was trained and how it ended: one line a job; a record that can be made again from manifests and folders."""

from typing import Any

from daemon.core import files
from daemon.core.paths import Workspace
from daemon.core.records import LedgerLine, State, now

UNDONE = "undone"  # the outcome of a job whose model was lost; it waits again


def lines(workspace: Workspace) -> list[LedgerLine]:
    """All lines that can be read, oldest first; the last line of a job counts."""
    return [line for value in files.read_lines(workspace.ledger) if (line := _line(value)) is not None]


def _line(value: dict[str, Any]) -> LedgerLine | None:
    try:
        return LedgerLine.model_validate(value)
    except ValueError:
        return None


def damage(workspace: Workspace) -> str | None:
    """What is wrong with the ledger, in words; a last line without its end is what a crash leaves, no damage."""
    if not workspace.ledger.exists():
        return "is missing"
    whole = workspace.ledger.read_bytes().split(b"\n")[:-1]
    for number, raw in enumerate(whole, 1):
        value = files.parse_line(raw)
        if raw and (value is None or _line(value) is None):
            return f"is damaged: line {number} cannot be read"
    return None


def cut_torn_end(workspace: Workspace) -> None:
    """Take away a last line without its end; else the next line would make it look like damage."""
    content = workspace.ledger.read_bytes() if workspace.ledger.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        files.write(workspace.ledger, whole)


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
    """The checkpoint with which each job, or a part that was kept, was accepted, oldest first; undone ones left out."""
    last = _last_lines(workspace).values()
    return {line.job: line.checkpoint for line in last if _in_model(line) and line.checkpoint}


def trained_as(workspace: Workspace, sha256: str) -> str | None:
    """The job in which this very content, or a part of it that was kept, was trained and accepted, if any."""
    return trained(workspace).get(sha256)


def trained(workspace: Workspace) -> dict[str, str]:
    """The content of each job that the model contains, in whole or in part, by hash, and the first job that it was."""
    last = reversed(_last_lines(workspace).values())
    return {line.sha256: line.job for line in last if line.sha256 and _in_model(line)}


def _in_model(line: LedgerLine) -> bool:
    """Whether the model contains the job or a part of it; a kept part names its checkpoint, however the job ended."""
    return line.outcome == State.COMPLETED or (line.checkpoint is not None and line.outcome != UNDONE)


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
        if _was_accepted(x) and x.holdout_key == holdout_key and x.validation_loss is not None
    ]
    return min(losses, default=None) if holdout_key else None


def accepted_loss(workspace: Workspace, job: str, holdout_key: str | None) -> float | None:
    """The holdout loss with which a job was accepted, measured on this very holdout."""
    losses = [
        x.validation_loss
        for x in lines(workspace)
        if x.job == job and x.holdout_key == holdout_key and _was_accepted(x)
    ]
    return losses[-1] if losses and holdout_key else None


def _was_accepted(line: LedgerLine) -> bool:
    """Whether the line tells of an acceptance; that of a job which failed after a part was kept does not."""
    return line.outcome == State.COMPLETED or (line.outcome == State.SKIPPED and line.checkpoint is not None)
