"""Steps of the product that change the disk, each with what a person may rely on whenever the power fails in it."""

import shutil
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from daemon.core.paths import Workspace
from daemon.service import main
from tests.helpers_disk import Around, Call, disk_with, without_waiting
from tests.helpers_jobs import make_workspace
from tests.helpers_powerloss import Recorder, Site, watching

T = TypeVar("T")
Part = Callable[[Workspace], object]


@dataclass(frozen=True)
class Plot:
    """A step under a loss of power."""

    before: Part  # what was there; all of it lasts
    act: Part  # the step
    again: Part  # what the next life does with what it finds
    at_once: Part  # what holds before anybody has mended anything
    in_the_end: Part  # what holds after `again`; and, once the step has returned, without it
    make: Callable[[Path], Workspace] = make_workspace
    of_daemon: bool = True  # else of a command, which a person repeats


@dataclass(frozen=True)
class Explored:
    """What came of one plot."""

    states: int
    different: int  # states that a reader can tell from one another
    violations: list[str]
    sites: set[Site]

    def __add__(self, other: "Explored") -> "Explored":
        return Explored(
            self.states + other.states,
            self.different + other.different,
            self.violations + other.violations,
            self.sites | other.sites,
        )


def prepared(plot: Plot, root: Path) -> Workspace:
    with without_waiting():
        workspace = plot.make(root)
        plot.before(workspace)
    return workspace


def explore(plot: Plot, root: Path, stop_at: int | None = None) -> Explored:
    """Fail the power after each call, lose each part of what was pending, and look what the next life makes of it."""
    workspace = prepared(plot, root)
    with watching(root) as recorder:
        plot.act(workspace)
    return judge(plot, root, recorder, stop_at=stop_at)


def explore_again(plot: Plot, root: Path, count: int) -> Explored:
    """The power fails again while the next life mends what the first failure left; from `count` such states."""
    workspace = prepared(plot, root)
    with watching(root) as recorder:
        plot.act(workspace)
    different = {state.tree.key(): state for state in recorder.states()}
    total = Explored(0, 0, [], set())
    for state in _spread(list(different.values()), count):
        shutil.rmtree(root, ignore_errors=True)
        state.tree.build(root)
        with watching(root) as second:
            plot.again(workspace)
        total += judge(plot, root, second, words=f"{state.words}; then ")
    return total


def explore_killed(plot: Plot, root: Path, count: int) -> Explored:
    """The daemon is killed at a call, the next one starts and acts on what can be read, and then the power fails."""
    total, calls = Explored(0, 0, [], set()), _count_calls(plot, root)
    for number in _spread(range(1, calls + 1), count):
        workspace = prepared(plot, root)
        with watching(root) as recorder:
            with suppress(Killed), disk_with(_killing(number)):
                plot.act(workspace)
            killed_at = recorder.points
            main.trust_the_disk(workspace)
            plot.again(workspace)
        words = f"killed at call {number}; then "
        total += judge(plot, root, recorder, words=words, since=killed_at)
    return total


def judge(
    plot: Plot, root: Path, recorder: Recorder, words: str = "", since: int = 0, stop_at: int | None = None
) -> Explored:
    """Build each state at the very path of the recorded one, since records name the workspace by it, and look at it."""
    states, violations, seen = 0, [], set()
    for state in recorder.states(since):
        states += 1
        key = (state.tree.key(), state.last)
        if key in seen:
            continue
        seen.add(key)
        shutil.rmtree(root, ignore_errors=True)
        state.tree.build(root)
        trouble = _trouble(plot, Workspace.at(root), state.last)
        if trouble:
            violations.append(f"{words}{state.words}: {trouble}")
            if len(violations) == stop_at:
                break
    shutil.rmtree(root, ignore_errors=True)
    return Explored(states, len(seen), violations, recorder.sites)


class Killed(BaseException):
    """The end of a process, for the code that runs in it; from here on none of its calls has an effect."""


def _killing(number: int) -> Around:
    calls = 0

    def around(name: str, call: Call, arguments: tuple[Any, ...]) -> Any:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise Killed
        return call()

    return around


def _count_calls(plot: Plot, root: Path) -> int:
    calls: list[str] = []
    workspace = prepared(plot, root)
    with disk_with(lambda name, call, _: (calls.append(name), call())[1]):
        plot.act(workspace)
    shutil.rmtree(root)
    return len(calls)


def _spread(things: Sequence[T], count: int) -> list[T]:
    """At most `count` of them, evenly."""
    step = max(1.0, len(things) / count)
    return [things[int(n * step)] for n in range(min(count, len(things)))]


def _trouble(plot: Plot, workspace: Workspace, returned: bool) -> str | None:
    try:
        plot.at_once(workspace)
        if returned:
            plot.in_the_end(workspace)
        with without_waiting():
            plot.again(workspace)
        plot.in_the_end(workspace)
    except Exception as error:  # whatever goes wrong in this life is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} {error} in {where.name}: {where.line}"
    return None


def nothing(*_: Any) -> None:
    pass
