"""How the demo looks: headlines, loss lines, and the table of answers."""

from typing import Any

from rich.table import Table
from rich.text import Text

from daemon.cli.words import show

SHOWN_CHARACTERS = 32
BAR_CELLS = 20


def headline(text: str) -> None:
    show("", Text(f"── {text} ──", style="bold cyan"))


def show_line(line: dict[str, Any]) -> None:
    """One line of log.jsonl: a bar and the loss, or what an evaluation found."""
    if line["kind"] == "log":
        total = line["total_steps"] - (line["step"] - line["job_step"])  # of this file, not of the lineage
        done = round(BAR_CELLS * line["job_step"] / total)
        bar = "█" * done + "░" * (BAR_CELLS - done)
        show(f"  {bar}  update {line['job_step']:>3} of {total}  loss {figure(line['loss'])}")
    elif line["kind"] == "eval":
        show(f"  {'':{BAR_CELLS}}  validation loss {figure(line.get('validation_loss'))}")


def draw_answers(answers: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "question", "expected", "answer"):
        table.add_column(column)
    for row in answers["answers"]:
        mark = Text("✓", style="green") if row["right"] else Text("✗", style="red")
        table.add_row(mark, Text(row["prompt"]), Text(row["expected"]), Text(_printable(row["answer"])))
    return table


def _printable(text: str) -> str:
    shown = "".join(c if c.isprintable() else "·" for c in text)
    return shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 1] + "…"


def figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else str(value or "–")
