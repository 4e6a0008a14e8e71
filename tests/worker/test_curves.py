"""Pictures of a training: every log can be drawn, what is no number is a mark, and a failure ends nothing."""

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from daemon.core.paths import Run
from daemon.jobs import history
from daemon.worker import curves
from tests.jobs.test_history import KILLED, line, logged, started

FULL = {"learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_second": 10.0}
LOGS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "only begun": [started(0)],
    "one line": [started(0), logged(1, loss=1.0, **FULL)],
    "nothing but NaN": [started(0), logged(1, loss="NaN"), logged(2, loss="NaN")],
    "two attempts": KILLED,
    "many attempts": [part for n in range(40) for part in (started(n, n + 1), logged(n + 1, n + 1, loss=1.0))],
    "evaluations only": [started(0), line("eval", 0, validation_loss="Infinity"), line("eval", 3, validation_loss=2.0)],
}


@pytest.mark.parametrize("name", LOGS)
def test_every_log_can_be_drawn(name: str) -> None:
    pictures = curves.draw(history.curves(LOGS[name]), "x.jsonl")
    assert pictures["png"].startswith(b"\x89PNG") and b"<svg" in pictures["svg"][:2000]


def test_the_same_log_gives_the_same_pictures() -> None:
    data = history.curves(KILLED)
    assert curves.draw(data, "x") == curves.draw(data, "x")


def test_a_name_of_a_file_is_no_formula() -> None:
    assert curves.draw(history.curves(KILLED), "a$\\frac{$b.jsonl")["svg"]


def test_what_is_no_finite_number_is_a_gap_with_a_mark_at_the_edge_and_never_zero() -> None:
    axes = Figure().add_subplot()
    curves._line(axes, [1, 2, 3], [4.0, "NaN", 2.0], "black", "loss")
    drawn, mark = axes.get_lines()
    heights = [float(y) for y in drawn.get_ydata()]
    assert heights[0] == 4.0 and math.isnan(heights[1]) and heights[2] == 2.0
    assert ([*mark.get_xdata()], [*mark.get_ydata()], mark.get_marker()) == ([2], [1.0], "x")
    assert mark.get_transform() == axes.get_xaxis_transform()  # of the height of the picture, not of the loss


def test_where_nothing_was_measured_there_is_neither_line_nor_mark() -> None:
    axes = Figure().add_subplot()
    curves._line(axes, [1, 2], [None, None], "black", "loss")
    assert axes.get_lines() == []


def test_curves_that_cannot_be_written_are_said_and_raise_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    curves.leave(Run(tmp_path / "gone"), "x.jsonl", said.append)
    assert len(said) == 1 and said[0].startswith("── no curves: FileNotFoundError")


def test_data_and_pictures_lie_in_the_runs_folder(tmp_path: Path) -> None:
    said: list[str] = []
    curves.leave(Run(tmp_path), "x.jsonl", said.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.json", "curves.png", "curves.svg"] and not said
