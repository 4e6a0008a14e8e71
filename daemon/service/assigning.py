"""Preflight: from a waiting job to an assignment that a worker can trust, or the reason why it has to wait."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from daemon.core import files
from daemon.core.attempts import PROTOCOL, Assignment, CheckpointName, Evaluation, Manifest, Trained
from daemon.core.config import Settings, override
from daemon.core.errors import BadConfig, BadData
from daemon.core.paths import Attempt, Workspace
from daemon.core.records import IntakeReport, State
from daemon.data import holdout, suites, tokens
from daemon.jobs import ledger, remedies
from daemon.jobs.store import Found
from daemon.models import base, checkpoints, methods, presets
from daemon.models.checkpoints import Part
from daemon.service import progress


@dataclass(frozen=True)
class Parent:
    """The accepted model that a job grows from; the base model before the first.

    A job of which a part was kept goes on in its stream of rows: upon the part's own parent, from the part on, while
    nothing else was accepted since, as if it had never been skipped; else upon what was accepted last.
    """

    name: CheckpointName | None
    lineage: list[Trained]
    base_step: int  # its global_step, less the updates of `part`
    part: Part  # what it contains of the job
    accepted: Manifest | None

    @property
    def stream_at(self) -> int:
        """The global step that names the job's stream of rows: that at which its first row was trained."""
        named = self.part.entries[0].stream_at if self.part.entries else None
        return self.base_step if named is None else named


def job_settings(workspace: Workspace, found: Found, settings: Settings) -> Settings:
    """The job's frozen settings; before its first attempt those of today, with its sidecar and what suits its rows."""
    frozen = workspace.run(found.id).config
    if frozen.is_file():
        return Settings.model_validate(yaml.safe_load(frozen.read_text()))
    given = override(settings, num_train_epochs=found.job.epochs, learning_rate=found.job.learning_rate)
    report = _report(found)
    if report is None or not report.usable:
        return given
    model = workspace.root / settings.base_model
    return override(given, **presets.chosen(given, model, rows=report.rows, longest_row=report.longest_row))


def freeze(workspace: Workspace, found: Found, settings: Settings) -> None:
    """Keep the settings with which a job began, for all its attempts and for people."""
    run = workspace.run(found.id)
    files.make_folder(run.attempts)
    if not run.config.exists():
        files.write(run.config, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))


def thaw(workspace: Workspace, job: str) -> None:
    """Let a retry begin with today's settings; not where the model contains a part of the job, which has to go on."""
    if not checkpoints.part_in_model(workspace, job).steps:
        files.remove(workspace.run(job).config)


def check_model(workspace: Workspace, settings: Settings) -> Path:
    """The base model's folder. Raises BadConfig where it is not there, or cannot be trained as it is to be."""
    folder = workspace.root / settings.base_model
    if not (folder / "config.json").is_file():
        raise BadConfig(
            f"config.json names the base model {settings.base_model}, and there is no model in that folder.",
            "bring it with: training_daemon init DIR --model PATH (or --demo); or correct base_model in config.json",
        )
    methods.check(settings.training_method)
    return folder


def stale(workspace: Workspace, found: Found, settings: Settings) -> str | None:
    """Why what intake made of a file cannot be trained on (any more); None where it can. Reads the data file."""
    report = _report(found)
    if report is None:
        return "not read yet"
    if not report.usable:
        return report.reason or "not usable"
    # The holdout is read with the workspace's own column_map, so the frozen settings keep that one.
    wanted = tokens.key(check_model(workspace, settings), override(settings, column_map=found.job.column_map))
    wrong = tokens.check(found.tokens, wanted, report.sha256)
    if wrong:
        return wrong
    if files.hash_file(found.data) != report.sha256:
        return "the data file has changed since it was read"
    return "the holdout has changed since it was read" if holdout_is_unread(workspace, settings) else None


def holdout_is_unread(workspace: Workspace, settings: Settings) -> bool:
    """Whether intake has still to tokenise the holdout as it is now."""
    key = holdout.holdout_key(workspace, settings)
    return key is not None and tokens.read_meta(holdout.holdout_folder(workspace, key)) is None


def _report(found: Found) -> IntakeReport | None:
    try:
        return IntakeReport.load(found.report)
    except ValueError:
        return None


def find_parent(workspace: Workspace, job: str, settings: Settings) -> Parent:
    """The accepted model, which `going_back` has looked after. Raises BadConfig where it is of another method."""
    folder = checkpoints.latest(workspace)
    if folder is None:
        return Parent(None, [], 0, Part(), None)
    manifest = checkpoints.read(folder)
    assert manifest, "verified before"
    if manifest.method != settings.training_method:
        raise BadConfig(
            f"config.json says training_method {settings.training_method}; the accepted model is {manifest.method}.",
            f"set training_method back to {manifest.method}, or start another workspace",
        )
    _check_adapter(workspace, manifest, settings)
    name, lineage, step = checkpoints.parent_of(folder, job), manifest.lineage, manifest.step
    if manifest.job == job and not manifest.final:
        lineage, step = lineage[:-1], step - lineage[-1].steps
    part = Part(tuple(entry for entry in lineage if entry.job == job))
    return Parent(name, lineage, step - part.steps, part, manifest)


def _check_adapter(workspace: Workspace, accepted: Manifest, settings: Settings) -> None:
    """Raises BadConfig where the accepted adapter is another than the settings want: it goes on as it began."""
    frozen = workspace.run(accepted.job).config
    if not settings.adapter or not frozen.is_file():
        return
    before = Settings.model_validate(yaml.safe_load(frozen.read_text())).lora
    changed = [name for name in type(before).model_fields if getattr(before, name) != getattr(settings.lora, name)]
    if changed:
        was = ", ".join(f"{name} {getattr(before, name)}" for name in changed)
        raise BadConfig(
            f"config.json has another lora.{', lora.'.join(changed)} than the accepted adapter, which has {was}.",
            "set it back in config.json, or start another workspace",
        )


def check_kept_part(found: Found, settings: Settings, parent: Parent) -> None:
    """Raises BadData where the rows of a file are not those of which a part is in the model."""
    meta, report = tokens.read_meta(found.tokens), _report(found)
    assert meta and report, "checked by `stale`"
    for entry in checkpoints.part_of(parent.accepted, found.id).entries:
        if (entry.sha256, entry.rows, entry.epochs) != (report.sha256, meta.rows, settings.num_train_epochs):
            raise BadData(
                f"{entry.steps} updates of it are in the model, and since then its rows have changed: "
                f"{meta.rows} instead of {entry.rows}, or others.",
                "bring back the file and the holdout as they were; or add the file with --again to train all of it",
            )


def assign(workspace: Workspace, found: Found, settings: Settings, parent: Parent, resume: Path | None) -> Attempt:
    """Write the next attempt's assignment. `settings` are the job's frozen ones."""
    run = workspace.run(found.id)
    meta = tokens.read_meta(found.tokens)
    report = _report(found)
    assert meta and report, "checked by `stale`"
    key = holdout.holdout_key(workspace, settings)
    newest = run.newest_attempt()
    if newest and not newest.assignment.exists():  # handed to nobody: the disk was full, or the daemon died
        newest = run.attempt(newest.number - 1) if newest.number > 1 else None
    attempt = run.attempt(newest.number + 1 if newest else 1)
    files.make_folder(attempt.root)
    first = parent.part.steps
    if resume and (manifest := checkpoints.read(resume)):
        first = manifest.job_step
    assignment = Assignment(
        job=found.id,
        file=found.job.file,
        data_sha256=report.sha256,
        attempt=attempt.number,
        first_attempt=first_attempt(found, newest) or attempt.number,
        workspace=str(workspace.root),
        settings=settings.model_dump(mode="json"),
        tokens=f"queue/processing/{found.id}/{found.tokens.name}",
        holdout=str(holdout.holdout_folder(workspace, key).relative_to(workspace.root)) if key else None,
        holdout_key=key,
        base_model=settings.base_model,
        base_model_sha256=base.seal(workspace.root / settings.base_model),
        parent=parent.name,
        parent_lineage=parent.lineage,
        base_step=parent.base_step,
        stream_at=parent.stream_at,
        first_step=parent.part.steps,
        first_rows=parent.part.rows or 0,
        resume=str(resume.relative_to(workspace.root)) if resume else None,
        before=known_loss(workspace, found.id, parent, key),
        rows=meta.rows,
        suites=tuple(suites.listed(workspace, settings)),
        total_steps=-(-meta.rows * settings.num_train_epochs // settings.update_rows),
        protocol=PROTOCOL,
        **_remedies(found, newest, first, settings, parent),
    )
    assignment.save(attempt.assignment)
    return attempt


def _remedies(
    found: Found, newest: Attempt | None, first_step: int, settings: Settings, parent: Parent
) -> dict[str, Any]:
    """What the attempt does otherwise than the settings say."""
    before = Assignment.load(newest.assignment) if newest else None
    if newest is None or before is None or found.state is not State.PROCESSING:
        return {"micro_batch_rows": remedies.inherited_rows(settings, parent.accepted)}
    ending, why = progress.ended_as(newest)
    return remedies.remedied(before, ending, why, first_step, progress.poisoned(newest, before))


def first_attempt(found: Found, newest: Attempt | None) -> int | None:
    """The attempt with which a job in processing began; None where the one to come is the first, as after a retry."""
    before = Assignment.load(newest.assignment) if newest and found.state is State.PROCESSING else None
    return before.first_attempt if before else None


def known_loss(workspace: Workspace, job: str, parent: Parent, holdout_key: str | None) -> float | None:
    """The parent's loss on this holdout: measured by an earlier attempt of the job, or when the parent was accepted."""
    if parent.accepted and parent.accepted.job == job:
        return ledger.accepted_loss(workspace, job, holdout_key)  # of the part that was kept
    run = workspace.run(job)
    newest = run.newest_attempt()
    for number in range(newest.number if newest else 0, 0, -1):
        assignment = Assignment.load(run.attempt(number).assignment)
        measured = Evaluation.load(run.attempt(number).evaluation)
        if assignment and measured and assignment.parent == parent.name and measured.holdout_key == holdout_key:
            return measured.before
    return ledger.accepted_loss(workspace, parent.accepted.job, holdout_key) if parent.accepted else None
