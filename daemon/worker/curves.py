"""The curves of a training as data and as pictures; what cannot be drawn is said, and ends no training."""

import io
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from daemon.core import files
from daemon.core.paths import Run
from daemon.jobs import history

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, VALIDATION, RATE, GRADIENT, SPEED = "#1f5fa8", "#d1690e", "#2d7d46", "#6b4fa0", "#8a6d1a"
WRONG, QUIET, INK = "#c22626", "#8b8f96", "#24292f"
INCHES, DOTS_AN_INCH = (10.5, 7.0), 110
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.8,
    "svg.hashsalt": "curves",  # the same curves are the same bytes
}


def leave(run: Run, title: str, say: Callable[[str], object]) -> None:
    """curves.json, curves.svg and curves.png, from the run's log; a failure is only said."""
    try:
        data = history.curves(history.read(run.log))
        files.write(run.curves, json.dumps(data, allow_nan=False) + "\n")
        for kind, picture in draw(data, title).items():
            files.write(run.root / f"curves.{kind}", picture)
    except Exception as error:
        say(f"── no curves: {type(error).__name__}: {error}")


def draw(data: dict[str, Any], title: str) -> dict[str, bytes]:
    """The pictures, by the ending of their file's name."""
    # Here: it takes a second and 25 MB, which only the end of a training needs.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES, facecolor="white")
        FigureCanvasAgg(figure)
        _fill(figure, data, title)
        return {"svg": _saved(figure, "svg", metadata={"Date": None}), "png": _saved(figure, "png", dpi=DOTS_AN_INCH)}


def _saved(figure: "Figure", kind: str, **how: Any) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format=kind, **how)
    return picture.getvalue()


def _fill(figure: "Figure", data: dict[str, Any], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    figure.suptitle(title, x=0.08, y=0.975, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    grid = figure.add_gridspec(
        2, 3, height_ratios=(1.75, 1), left=0.08, right=0.985, top=0.9, bottom=0.075, hspace=0.34, wspace=0.3
    )
    trained, evaluated = data["training"], data["evaluation"]
    top = figure.add_subplot(grid[0, :])
    _line(top, trained["step"], trained["loss"], LOSS, "training loss", linewidth=1.6)
    _line(top, evaluated["step"], evaluated["validation_loss"], VALIDATION, "validation loss", marker="o", markersize=5)
    _mark(top, data["marks"])
    top.set_ylim(bottom=0)
    top.set_ylabel("loss a token")
    top.xaxis.set_major_locator(MaxNLocator(integer=True))
    if top.get_legend_handles_labels()[0]:
        top.legend(loc="lower right", bbox_to_anchor=(1.0, 1.01), frameon=False, ncols=5, columnspacing=1.6)
    small = (("learning_rate", "learning rate", RATE), ("grad_norm", "gradient norm", GRADIENT))
    for place, (name, words, colour) in enumerate((*small, ("tokens_per_second", "tokens a second", SPEED))):
        below = figure.add_subplot(grid[1, place])
        _line(below, trained["step"], trained[name], colour, None, linewidth=1.3)
        _borders(below, data["marks"]["attempts"])
        below.set_title(words, loc="left", fontsize=9.5)
        below.set_xlabel("step")
        below.set_xlim(top.get_xlim())
        below.set_ylim(0, 1.05 * below.get_ylim()[1])
        below.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        below.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 100 else f"{value:.3g}")


def _line(axes: "Axes", steps: list[int], values: list[Any], colour: str, words: str | None, **how: Any) -> None:
    """A line with gaps where there is no finite number; where that was said, a mark at the upper edge."""
    numbers = [history.number(value) for value in values]
    found = [value for value in numbers if value is not None]
    if found:
        only: dict[str, Any] = {"marker": "o", "markersize": 4} if len(found) == 1 else {}
        axes.plot(
            steps, [math.nan if n is None else n for n in numbers], color=colour, label=words, **(only | how), zorder=3
        )
    lost = [step for step, value, n in zip(steps, values, numbers, strict=True) if n is None and value is not None]
    _at_edge(axes, lost, 1.0, "x", WRONG, "not a finite number" if words else None)


def _mark(axes: "Axes", marks: dict[str, list[int]]) -> None:
    """Checkpoints at the lower edge, skipped updates at the upper one, the borders of attempts between."""
    _at_edge(axes, marks["checkpoints"], 0.0, "^", QUIET, "checkpoint")
    _at_edge(axes, marks["skipped_updates"], 1.0, "v", WRONG, "skipped update")
    _borders(axes, marks["attempts"])
    for number, step in enumerate(marks["attempts"], 2):
        axes.annotate(
            f"attempt {number}",
            (step, 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
            color="#5b6068",
            rotation=90,
            va="top",
        )


def _borders(axes: "Axes", steps: list[int]) -> None:
    for step in steps:
        axes.axvline(step, color=QUIET, linestyle=(0, (4, 3)), linewidth=1, zorder=1)


def _at_edge(axes: "Axes", steps: list[int], height: float, marker: str, colour: str, words: str | None) -> None:
    """Marks at these steps, at a share of the height whatever the numbers are."""
    if steps:
        where = axes.get_xaxis_transform()
        heights = [height] * len(steps)
        axes.plot(
            steps, heights, marker, color=colour, label=words, transform=where, clip_on=False, markersize=6, zorder=4
        )
