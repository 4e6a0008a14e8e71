"""What the views say, for people: status, queue, job and log as text that also reads well without colour."""

import os
from datetime import datetime
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from daemon.cli.common import in_words

BAR_CELLS = 24
PIPE_COLUMNS = 240  # a pipe has no width; nothing may be cut off in it
COLUMNS = ("#", "id", "priority", "state", "file", "rows", "bad", "long", "steps", "age", "why")
RIGHT = ("#", "rows", "bad", "long", "steps")
STYLES = {"training": "green", "error": "bold red", "stopped": "dim", "failed": "red", "rejected": "yellow"}
STYLES |= {"completed": "green", "processing": "bold", "paused": "yellow"}


def show(*parts: RenderableType) -> None:
    """Print, with colours on a terminal only, and with none where NO_COLOR is set."""
    console = _console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    for part in parts:
        console.print(part, soft_wrap=not isinstance(part, Table))


def has_colours() -> bool:
    """Whether colour would be seen: else it must not carry a meaning."""
    console = _console()
    return console.is_terminal and console.color_system is not None


def _console() -> Console:
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(highlight=False, color_system=colours)


def number(value: Any, form: str = ".4g") -> str:
    """A figure; numbers that JSON does not know come as words, and unknown ones as a dash."""
    return format(value, form) if isinstance(value, int | float) else str(value or "–")


# ---- status ----


def status(shown: dict[str, Any], inbox: list[str], start: str) -> RenderableType:
    """The state, the figures, the queue: what a person wants to know first stands first."""
    lines = [_headline(shown, start)]
    if shown["job"]:
        lines += [_line("rows", rows_in_words(shown["job"])), _progress(shown), _figures(shown)]
    lines.append(
        _line("queue", " · ".join(f"{name} {count}" for name, count in shown["queue"].items() if count) or "empty")
    )
    if inbox:
        lines.append(_line("inbox", f"{len(inbox)} not taken in yet: {', '.join(inbox[:5])}"))
    if shown["model_name"]:
        method = f" · {shown['training_method']}" if shown["training_method"] else ""
        accepted = f" · accepted step {shown['accepted_step']}" if shown["accepted_step"] is not None else ""
        lines.append(_line("model", f"{shown['model_name']}{method}{accepted}"))
    if shown["last_checkpoint"]:
        lines.append(_checkpoint(shown["last_checkpoint"]))
    return Group(*lines, *_error(shown["error"]))


def _headline(shown: dict[str, Any], start: str) -> Text:
    state = str(shown["status"])
    line = Text("● " if shown["daemon_running"] else "○ ").append(state, style=STYLES.get(state, "bold"))
    if not shown["daemon_running"]:
        seen = f", last seen {in_words(shown['age_seconds'])} ago" if shown["last_seen"] else ""
        worker = " (a worker goes on by itself)" if shown["worker_running"] else ""
        return line.append(f"  daemon not running{seen}{worker}; {start}")
    if shown["job"]:
        job = shown["job"]
        line.append(f"  {job['file']} ({job['priority']}, attempt {job['attempt']})")
    if shown["reason"]:
        line.append(f"  reason: {shown['reason']}")
    if shown["stale"]:
        line.append(f"  no word for {in_words(shown['age_seconds'])}: the figures are old", style="yellow")
    return line


def _progress(shown: dict[str, Any]) -> Text:
    percent = shown["progress_percent"]
    full = round(BAR_CELLS * min(max(percent or 0, 0), 100) / 100)
    bar = "█" * full + "░" * (BAR_CELLS - full)
    text = (
        f"{number(shown['job_step'], 'd')}/{number(shown['job_total_steps'], 'd')}  {bar}  {number(percent, '.0f')} %"
    )
    text += f"   step {number(shown['current_step'], 'd')} of the model"
    text += f"   epoch {number(shown['epoch'], '.2f')}"
    if shown["eta_seconds"] is not None:
        text += f"   done in {in_words(shown['eta_seconds'])}"
    return _line("steps", text)


def _figures(shown: dict[str, Any]) -> Text:
    rating = f" {shown['gap_rating']}" if shown["gap_rating"] else ""
    return _line(
        "loss",
        f"{number(shown['loss'])}   validation {number(shown['validation_loss'])}"
        f"   gap {number(shown['val_train_gap'], '+.3f')}{rating}   rate {number(shown['learning_rate'], '.3g')}"
        f"   gradient {number(shown['grad_norm'], '.3g')}   {number(shown['tokens_per_second'], ',.0f')} tokens/s",
    )


def _checkpoint(last: dict[str, Any]) -> Text:
    verified = "verified" if last.get("verified") else "not verified"
    return _line("saved", f"{last['path']} ({verified}, {in_words(last.get('age_seconds'))} old)")


def _error(error: dict[str, Any] | None) -> list[Text]:
    if not error:
        return []
    waits = error["class"] == "approval"  # nothing went wrong
    lines = [_line("waits", str(error["message"]), "yellow") if waits else _line("error", str(error["message"]), "red")]
    return lines + ([_line("remedy", str(error["remedy"]))] if error.get("remedy") else [])


def _line(name: str, text: str, style: str = "") -> Text:
    return Text(f"  {name:<8}", style="dim").append(text, style=style or "not dim")


# ---- the queue ----


def queue(rows: list[dict[str, Any]]) -> Text:
    """One line a job; laid out by hand, because rich's tables take a second for two thousand lines."""
    table = [COLUMNS, *map(_cells, rows)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    return Text("\n").join(_table_line(cells, widths) for cells in table)


def _table_line(cells: tuple[str, ...], widths: list[int]) -> Text:
    line = Text(style="dim" if cells is COLUMNS else "")
    for name, cell, width in zip(COLUMNS, cells, widths, strict=True):
        blanks = " " * (width - cell_len(cell))
        padded = blanks + cell if name in RIGHT else cell + blanks if name != "why" else cell
        line.append(padded, STYLES.get(cell) if name == "state" else None).append("  " if name != "why" else "")
    return line


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    why = f"waits: {row['waits_for']}" if row["waits_for"] else row["reason"] or ""
    figures = (number(row[name], "d") for name in ("rows", "bad_rows", "too_long_rows", "steps"))
    position = "▶" if row["state"] == "processing" else str(row["position"] or "")
    return position, row["id"], row["priority"], row["state"], row["file"], *figures, in_words(row["age_seconds"]), why


def job(facts: dict[str, Any]) -> RenderableType:
    """A job with its intake report, its attempts and its verdict."""
    report = facts["report"] or {}
    lines = [
        Text(facts["id"], style="bold").append(f"  {facts['state']}  {facts['file']}", style="not bold"),
        _line("folder", facts["folder"]),
        _line("rows", rows_in_words(facts)),
    ]
    if report:
        lines.append(
            _line("format", f"{report.get('format') or 'unknown'}, {number(report.get('tokens'), ',d')} tokens")
        )
        lines += [_line("warning", str(warning), "yellow") for warning in report.get("warnings", [])]
    lines += [_line("refused", f"line {r['line']}: {r['reason']} ({r['fix']})") for r in facts["rejected_rows"]]
    lines += [_attempt(attempt) for attempt in facts["run"]["attempts"]]
    if last := facts["run"]["last_line"]:
        lines.append(_line("log", log_line(last)))
    if question := facts["run"].get("question"):
        automatic = question["automatic"]
        alone = "pass" if automatic["passed"] else "reject"
        lines.append(_line("gate", f"waits for approval; the figures alone would {alone} it: {automatic['reason']}"))
    if verdict := facts["run"]["verdict"]:
        lines.append(_line("gate", f"{'passed' if verdict['passed'] else 'rejected'}: {verdict['reason']}"))
    lines += [_line(name, left) for name in ("report", "results", "curves") if (left := facts["run"][name])]
    if facts["reason"]:
        lines.append(_line("reason", facts["reason"]))
    if facts["remedy"]:
        lines.append(_line("remedy", facts["remedy"]))
    return Group(*lines)


def rows_in_words(facts: dict[str, Any]) -> str:
    """How many rows are trained, and how many are not; an earlier daemon may not have said all."""
    too_long = f", {facts['too_long_rows']} too long" if facts.get("too_long_rows") else ""
    return f"{number(facts['rows'], 'd')} good, {number(facts.get('bad_rows'), 'd')} refused{too_long}"


def _attempt(attempt: dict[str, Any]) -> Text:
    outcome = attempt["outcome"]
    said = f"{outcome['kind']}: {outcome['message']}" if outcome else "no outcome written (yet)"
    return _line("attempt", f"{attempt['number']}  {said}")


# ---- the log ----


def log_line(line: dict[str, Any]) -> str:
    """One line of log.jsonl in one line of text."""
    when = datetime.fromisoformat(line["time"]).astimezone().strftime("%H:%M:%S") if "time" in line else "        "
    where = f"{when}  step {line.get('step', '?')}"
    if line.get("kind") == "log":
        rate, speed = number(line.get("learning_rate"), ".3g"), number(line.get("tokens_per_second"), ",.0f")
        gradient = number(line.get("grad_norm"), ".3g")
        return f"{where}  loss {number(line.get('loss'))}  gradient {gradient}  rate {rate}  {speed} tokens/s"
    if line.get("kind") == "eval":
        gap = number(line.get("val_train_gap"), "+.3f")
        right = number(line.get("accuracy_percent"), ".0f")
        return f"{where}  validation {number(line.get('validation_loss'))}  gap {gap}  answers right {right} %"
    known = ("kind", "time", "attempt", "step", "job_step", "total_steps", "epoch", "event")
    facts = "  ".join(f"{name} {value}" for name, value in line.items() if name not in known)
    return f"{where}  {line.get('event', line.get('kind', ''))}  {facts}".rstrip()
