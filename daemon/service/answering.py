"""The wishes that lie there, and their answers."""

from pathlib import Path
from typing import Any

from daemon.core.errors import Exit, NotFound
from daemon.core.records import Answer, State, Wish, now
from daemon.jobs import store
from daemon.jobs.store import Found
from daemon.service.context import Context

ANSWER = ".answer.json"


def paths(context: Context) -> list[Path]:
    """The files of the wishes that wait for their answer, in the order in which they were made."""
    return sorted(p for p in context.workspace.wishes.glob("[!.]*.json") if not p.name.endswith(ANSWER))


def answer_of(path: Path) -> Path:
    """Where the answer to the wish in this file lies."""
    return path.with_name(f"{path.stem}{ANSWER}")


def read(path: Path) -> Wish | None:
    try:
        return Wish.load(path)
    except (ValueError, OSError):
        return None


def later(context: Context, wish: Wish, verb: str) -> bool:
    """Whether a later wish of this kind, for the same job where it is for one, waits already: the last word holds."""
    others = (read(path) for path in paths(context) if path.stem > wish.id)
    return any(other is not None and (other.verb, other.job) == (verb, wish.job) for other in others)


def meant(context: Context, wish: Wish) -> Found:
    """The job that a wish names, by its whole id: it never hits another. Raises NotFound."""
    found = next((f for s in State if (f := store.look(context.workspace, s, wish.job or ".")) is not None), None)
    if found is None:
        raise NotFound(f"There is no job {wish.job}.", "training_queue list --all shows every job")
    return found


def unreadable(path: Path) -> Answer:
    return Answer(
        id=path.stem, done=False, message="the wish could not be read", remedy="ask again", exit=Exit.USAGE, at=now()
    )


def yes(wish: Wish, message: str, **facts: Any) -> Answer:
    return Answer(id=wish.id, done=True, message=message, facts=facts, at=now())


def no(wish: Wish, message: str, remedy: str, code: Exit = Exit.REFUSED) -> Answer:
    return Answer(id=wish.id, done=False, message=message, remedy=remedy, exit=code, at=now())
