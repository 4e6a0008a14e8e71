"""The run's log: a line of JSON for programs, the same in words for people."""

import math
from typing import Any

from daemon.core import files, room
from daemon.core.paths import Run
from daemon.core.records import now


class Log:
    """The run's log.jsonl, and the same for people in worker.log (standard output)."""

    def __init__(self, run: Run, attempt: int, base_step: int, total_steps: int) -> None:
        self._path = run.log
        self._attempt, self._base_step, self._total_steps = attempt, base_step, total_steps
        self._lost = 0  # lines that a full disk did not take

    def write(self, kind: str, job_step: int, epoch: float, **facts: Any) -> None:
        """Add a line. One that the disk does not take is lost, and that is said later: training does not end for it."""
        try:
            if self._lost:
                self._append("event", job_step, epoch, event="lines_lost", lines=self._lost)
                self._lost = 0
            self._append(kind, job_step, epoch, **facts)
        except OSError as error:
            if room.refusal(error) is None:
                raise
            self._lost += 1

    def _append(self, kind: str, job_step: int, epoch: float, **facts: Any) -> None:
        line = {
            "kind": kind,
            "time": now(),
            "attempt": self._attempt,
            "step": self._base_step + job_step,
            "job_step": job_step,
            "total_steps": self._total_steps,
            "epoch": round(epoch, 4),
            **facts,
        }
        files.append_json(self._path, strict(line), durable=False)

    def say(self, text: str) -> None:
        print(text, flush=True)


def strict(value: Any) -> Any:
    """Numbers that JSON does not know, as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {k: strict(v) for k, v in value.items()}
    return [strict(v) for v in value] if isinstance(value, list) else value
