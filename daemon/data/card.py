"""The report card of a file: what was found, and what training it will take."""

import shutil
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

from daemon.core import files
from daemon.core.config import Settings, override
from daemon.core.errors import DaemonError
from daemon.core.paths import JOB_DIGESTS, Workspace
from daemon.core.records import IntakeReport, Job, State, now
from daemon.data.digests import Digests
from daemon.data.formats import DIGEST_BYTES
from daemon.data.judging import Verdict, share
from daemon.data.sources import Source
from daemon.data.survey import Counts
from daemon.data.tokens import TokensMeta
from daemon.models import estimate, presets

TAIL_BYTES = 1 << 16  # of a run's log: the newest line with a speed is near its end
DIGESTS_AT_A_TIME = 1 << 16


def write_report(
    workspace: Workspace,
    job: Job,
    settings: Settings,
    source: Source,
    counts: Counts,
    meta: TokensMeta,
    verdict: Verdict,
    *,
    warnings: list[str],
    seen: Digests,
    seconds: float,
) -> IntakeReport:
    """The card, not saved yet. `settings` are the job's own."""
    percent = settings.warn_truncation_percent
    model = workspace.root / settings.base_model
    chosen = presets.chosen(settings, model, rows=meta.rows, longest_row=counts.longest)
    return IntakeReport(
        usable=verdict is None,
        file=job.file,
        sha256=source.sha256,
        bytes=source.bytes,
        format=counts.format,
        rows=meta.rows,
        bad_rows=counts.bad,
        too_long_rows=counts.too_long,
        holdout_rows=counts.in_holdout,
        duplicate_rows=counts.duplicates,
        preference_rows=counts.preferences,
        tokens=meta.tokens,
        trained_tokens=meta.trained_tokens,
        longest_row=counts.longest,
        length_histogram=dict(sorted(counts.lengths.items())),
        trained_token_percent=_percent(meta.trained_tokens, meta.tokens),
        think_tag_percent=_percent(counts.thinking, meta.rows),
        trained_before_rows=count_trained_before(workspace, job.id, seen),
        fitting_max_length=counts.fitting_length(percent) if share(counts.too_long, counts) > percent else None,
        numbered=counts.unit,
        cache_key=None if verdict else meta.key,
        reason=verdict[0] if verdict else None,
        remedy=verdict[1] if verdict else None,
        warnings=warnings,
        checked_at=now(),
        seconds=seconds,
        chosen=chosen,
        **_costs(workspace, override(settings, **chosen), meta),
    )


def _percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 2) if whole else None


def _costs(workspace: Workspace, settings: Settings, meta: TokensMeta) -> dict[str, Any]:
    """Updates, time, memory and disk; what cannot be known is None."""
    epochs, speed = settings.num_train_epochs, last_speed(workspace)
    found: dict[str, Any] = {
        "estimated_steps": ceil(meta.rows * epochs / settings.update_rows),
        "estimated_seconds": round(meta.tokens * epochs / speed, 1) if speed else None,
        "disk_free_bytes": shutil.disk_usage(workspace.root).free,
    }
    try:
        size = estimate.estimate(workspace.root / settings.base_model, settings.training_method)
    except (DaemonError, OSError, ValueError):
        return found  # a folder without weights is named by preflight; it says nothing of the file
    known = size.parameters > 0
    return found | {
        "estimated_memory_bytes": size.needed_bytes if known else None,
        "checkpoint_bytes": size.checkpoint_bytes if known else None,
    }


def last_speed(workspace: Workspace) -> float | None:
    """Tokens a second at the end of this lineage's newest training that has come so far; None before the first."""
    for log in sorted(workspace.runs.glob("*/log.jsonl"), reverse=True):
        with log.open("rb") as lines:
            lines.seek(max(0, log.stat().st_size - TAIL_BYTES))
            tail = lines.read().splitlines()
        for line in reversed(tail):
            speed = (files.parse_line(line) or {}).get("tokens_per_second")
            if isinstance(speed, int | float) and speed > 0:
                return float(speed)
    return None


def count_trained_before(workspace: Workspace, job: str, seen: Digests) -> int:
    """How many different rows of `seen` other completed files had."""
    kept = sorted(workspace.state(State.COMPLETED).glob(f"*/{JOB_DIGESTS}"))
    return seen.count(digest for path in kept if path.parent.name != job for digest in _digests(path))


def _digests(path: Path) -> Iterator[bytes]:
    with path.open("rb") as digests:
        while block := digests.read(DIGESTS_AT_A_TIME * DIGEST_BYTES):
            yield from (block[i : i + DIGEST_BYTES] for i in range(0, len(block), DIGEST_BYTES))
