"""What all commands share: where the workspace is, how an answer is printed, how an error becomes words and a code."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from daemon import views, wishes
from daemon.core.errors import DaemonError, Exit
from daemon.core.paths import ENV_BASE_DIR, Workspace

INTERRUPTED = 130  # 128 + SIGINT, as shells count

BaseDir = Annotated[
    Path | None,
    typer.Option("--base-dir", metavar="DIR", help=f"The workspace; else {ENV_BASE_DIR}, else the current folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Ask, and return at once.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0, help="How long to wait for it.")]


@dataclass(frozen=True)
class Face:
    """How one call of a command looks at the world: which workspace, and text or JSON."""

    base_dir: Path | None = None
    as_json: bool = False

    @property
    def workspace(self) -> Workspace:
        return Workspace.existing(self.base_dir)

    def say(self, text: str, value: Any) -> None:
        """Print `text` for people, or `value` for programs."""
        print(json.dumps(value, ensure_ascii=False) if self.as_json else text)


def face(context: typer.Context, base_dir: Path | None, as_json: bool) -> Face:
    """The options of a command, which may also stand before its name: both are what people type."""
    before = context.obj if isinstance(context.obj, Face) else Face()
    return Face(base_dir or before.base_dir, as_json or before.as_json)


def ask(
    shown: Face,
    verb: str,
    job: str | None = None,
    options: dict[str, Any] | None = None,
    *,
    no_wait: bool,
    timeout: float,
) -> None:
    """Ask the daemon for something, and print what it says."""
    # Without a daemon somebody has to obey, so there is no asking without waiting then.
    if no_wait and views.daemon_runs(shown.workspace):
        wish = wishes.send(shown.workspace, verb, job, options)
        shown.say(f"asked for: {verb}", wish.model_dump(mode="json"))
    else:
        answer = wishes.ask(shown.workspace, verb, job, options, timeout)
        shown.say(answer.message, answer.model_dump(mode="json"))


def new_app(name: str, summary: str, *examples: str) -> typer.Typer:
    """A command whose help is plain text, with examples, quick to print."""
    return typer.Typer(
        name=name,
        help=summary,
        epilog=show_examples(*examples),
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def show_examples(*commands: str) -> str:
    """The end of a help page; the mark keeps the lines apart."""
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


def run(app: typer.Typer) -> NoReturn:
    """The boundary: run the command, say every error in plain words, end with its exit code."""
    try:
        code = app(prog_name=app.info.name, standalone_mode=False)
        sys.stdout.flush()
    except DaemonError as error:
        code = _complain(error.message, error.remedy, int(error.exit))
    except TyperException as error:
        code = _complain(error.format_message(), f"{app.info.name} --help shows what it understands", int(Exit.USAGE))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough; what is still buffered must not raise again while Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = int(Exit.PROBLEM)
    except OSError as error:
        code = _complain(
            f"{error.filename}: {error.strerror}.", "check the disk and its permissions", int(Exit.PROBLEM)
        )
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, remedy: str, code: int) -> int:
    # Looked up in the words themselves: a command line that could not be parsed has no options yet.
    if "--json" in sys.argv[1:]:
        print(json.dumps({"error": {"message": message, "remedy": remedy, "exit": code}}, ensure_ascii=False))
    else:
        print(f"error: {message}\n  remedy: {remedy}", file=sys.stderr)
    return code


def in_words(seconds: float | None) -> str:
    """A duration as people say it: 42 s, 3 min, 2 h 5 min, 4 d 1 h."""
    if seconds is None:
        return "?"
    whole = max(0, round(seconds))
    for size, unit, smaller, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {small_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole // 60} min" if whole >= 60 else f"{whole} s"
