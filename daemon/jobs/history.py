"""What a run's log.jsonl tells of its training, all attempts together; but for `read` pure functions of its lines."""

import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from daemon.core import files

Line = dict[str, Any]
KEYS = {"kind", "time", "attempt", "step", "job_step"}  # of every line
TRAINING_COLUMNS = ("loss", "learning_rate", "grad_norm", "tokens_per_second")
EVALUATION_COLUMNS = ("validation_loss", "accuracy_percent", "think_tag_percent")


def read(log: Path) -> list[Line]:
    """The lines of a run's log; what is no such line is passed over."""
    return [line for line in files.read_lines(log) if line.keys() >= KEYS]


def counting(lines: Iterable[Line]) -> list[Line]:
    """The lines that tell of what the weights contain now.

    An attempt goes on from a checkpoint: what those before it had logged beyond is made again. The last line of a
    step counts.
    """
    kept: list[Line] = []
    places: dict[tuple[str, int], int] = {}  # of the line of each kind and step
    for line in lines:
        kind, step = line["kind"], line["job_step"]
        if line.get("event") == "started":
            kept = [earlier for earlier in kept if earlier["job_step"] <= step]
            places = {(e["kind"], e["job_step"]): place for place, e in enumerate(kept) if e["kind"] != "event"}
        if (kind, step) in places:
            kept[places[kind, step]] = line
            continue
        if kind != "event":
            places[kind, step] = len(kept)
        kept.append(line)
    return kept


def curves(lines: Iterable[Line]) -> dict[str, Any]:
    """The data of the curves: columns by global step, and the steps of what is marked. NaN is the string "NaN"."""
    lines = counting(lines)
    trained, evaluated = of_kind(lines, "log"), of_kind(lines, "eval")
    events = of_kind(lines, "event")
    starts = [line["step"] for line in events if line["event"] == "started"]
    return {
        "schema_version": 1,
        "training": _columns(trained, TRAINING_COLUMNS),
        "evaluation": _columns(evaluated, EVALUATION_COLUMNS),
        "marks": {
            "attempts": starts[1:],
            "checkpoints": sorted({line["step"] for line in events if line["event"] == "saved"}),
            "skipped_updates": sorted(line["step"] for line in events if line["event"] == "update_skipped"),
        },
    }


def _columns(lines: list[Line], names: tuple[str, ...]) -> dict[str, list[Any]]:
    return {name: [line.get(name) for line in lines] for name in ("step", *names)}


def of_kind(lines: Iterable[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["kind"] == kind]


def training_seconds(lines: Iterable[Line]) -> float:
    """From the first to the last line of each attempt, summed: evaluations and saves are in it, as what was lost is."""
    spans: dict[int, tuple[datetime, datetime]] = {}
    for line in lines:
        at = datetime.fromisoformat(line["time"])
        first, last = spans.get(line["attempt"], (at, at))
        spans[line["attempt"]] = min(first, at), max(last, at)
    return sum((last - first).total_seconds() for first, last in spans.values())


def tokens(lines: Iterable[Line]) -> dict[str, int | None]:
    """Of the rows that the weights contain, each as often as it was trained; None where the log does not say."""
    newest: Line = next(iter(reversed(of_kind(counting(lines), "log"))), {})
    return {"seen": newest.get("tokens_seen"), "trained": newest.get("tokens_trained")}


def tokens_per_second(lines: Iterable[Line]) -> float | None:
    """The mean speed of the updates that the weights contain."""
    total = seconds = 0.0
    before = 0
    for line in of_kind(counting(lines), "log"):
        speed, steps = line.get("tokens_per_second"), line.get("steps_per_second")
        if speed and steps:
            spent = (line["job_step"] - before) / steps
            total, seconds = total + speed * spent, seconds + spent
        before = line["job_step"]
    return round(total / seconds, 1) if seconds else None


def memory_peak_gb(lines: Iterable[Line]) -> float | None:
    """The most that any line of the log has, of any attempt, in billions of bytes."""
    peaks = [line["memory_bytes"] for line in lines if line.get("memory_bytes")]
    return round(max(peaks) / 1e9, 3) if peaks else None


def final_loss(lines: Iterable[Line]) -> float | None:
    """The training loss in the last line; None where it was not finite."""
    newest: Line = next(iter(reversed(of_kind(counting(lines), "log"))), {})
    return number(newest.get("loss"))


def first_and_last_evaluation(lines: Iterable[Line]) -> tuple[Line | None, Line | None]:
    """What was measured before the first step, and at the end; None where it was not."""
    kept = counting(lines)
    trained = [line["job_step"] for line in of_kind(kept, "log")]
    begin = [line for line in of_kind(kept, "eval") if not trained or line["job_step"] < trained[0]]
    end = [line for line in of_kind(kept, "eval") if trained and line["job_step"] >= trained[-1]]
    return (begin[0] if begin else None), (end[-1] if end else None)


def number(value: Any) -> float | None:
    """A number of the log; None for what is none or not finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
