"""training_controller: pause, resume, stop, skip, approve, reject, and the status, of the daemon of one workspace."""

from typing import Annotated, NoReturn

import typer

from daemon import views, wishes
from daemon.cli.common import AsJson, BaseDir, Face, NoWait, Timeout, ask, face, new_app, run, show_examples
from daemon.core.errors import Refused

app = new_app(
    "training_controller",
    "Control the training of a workspace. Without a command it shows the status.",
    "training_controller --base-dir ~/my-model",
    "training_controller pause --base-dir ~/my-model",
)


@app.callback(invoke_without_command=True)
def begin(context: typer.Context, base_dir: BaseDir = None, as_json: AsJson = False) -> None:
    context.obj = Face(base_dir, as_json)
    if context.invoked_subcommand is None:
        _show_status(context.obj)


@app.command(epilog=show_examples("training_controller status", "training_controller status --json | jq .loss"))
def status(context: typer.Context, base_dir: BaseDir = None, as_json: AsJson = False) -> None:
    """Show what goes on, also when no daemon runs."""
    _show_status(face(context, base_dir, as_json))


@app.command(epilog=show_examples("training_controller pause", "training_controller pause --timeout 300"))
def pause(
    context: typer.Context,
    no_wait: NoWait = False,
    timeout: Timeout = wishes.WAIT_SECONDS,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Save at the next step, free the GPU, start nothing.

    Files are still taken in. It lasts until resume, also across restarts.
    """
    ask(face(context, base_dir, as_json), "pause", no_wait=no_wait, timeout=timeout)


@app.command(epilog=show_examples("training_controller resume", "training_controller resume --no-wait"))
def resume(
    context: typer.Context,
    no_wait: NoWait = False,
    timeout: Timeout = wishes.WAIT_SECONDS,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Go on after a pause, at the exact row."""
    ask(face(context, base_dir, as_json), "resume", no_wait=no_wait, timeout=timeout)


@app.command(epilog=show_examples("training_controller stop", "training_controller stop --now"))
def stop(
    context: typer.Context,
    now: Annotated[
        bool, typer.Option("--now", help="Save at the next step and end, in the middle of the file.")
    ] = False,
    no_wait: NoWait = False,
    timeout: Timeout = wishes.WAIT_SECONDS,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Finish the current file, then end the daemon."""
    ask(face(context, base_dir, as_json), "stop", options={"now": now}, no_wait=no_wait, timeout=timeout)


@app.command(epilog=show_examples("training_controller skip", "training_controller skip --keep"))
def skip(
    context: typer.Context,
    keep: Annotated[
        bool, typer.Option("--keep/--drop", help="Keep what it has learned, if that passes the gate; or drop it.")
    ] = False,
    no_wait: NoWait = False,
    timeout: Timeout = wishes.WAIT_SECONDS,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Give up the file in training.

    It goes to queue/skipped. The model stays as it was, or with --keep contains what was learned so far.
    """
    shown = face(context, base_dir, as_json)
    job = views.in_training(shown.workspace)
    if job is None:
        raise Refused("Nothing is being trained.", "training_queue remove ID takes out a file that waits")
    ask(shown, "skip", job, {"keep": keep}, no_wait=no_wait, timeout=timeout)


Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; kept with the verdict.")]


@app.command(epilog=show_examples("training_controller approve", "training_controller approve --reason 'reads well'"))
def approve(
    context: typer.Context,
    reason: Reason = None,
    no_wait: NoWait = False,
    timeout: Timeout = wishes.WAIT_SECONDS,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Accept the model that waits for approval.

    current_model/latest moves to it, and the next file is trained upon it.
    """
    _decide(face(context, base_dir, as_json), "approve", reason, no_wait, timeout)


@app.command(epilog=show_examples("training_controller reject --reason 'forgets names'"))
def reject(
    context: typer.Context,
    reason: Reason = None,
    no_wait: NoWait = False,
    timeout: Timeout = wishes.WAIT_SECONDS,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Reject the model that waits for approval.

    Its file goes to queue/rejected. The model stays as it was before it.
    """
    _decide(face(context, base_dir, as_json), "reject", reason, no_wait, timeout)


def _decide(shown: Face, verb: str, reason: str | None, no_wait: bool, timeout: float) -> None:
    """Answer the very question that is asked now: a later one, of the same file too, is not meant."""
    job = views.in_training(shown.workspace)
    if job is None:
        raise Refused("Nothing waits for approval.", "training_queue list --all shows what became of each file")
    question = views.question(shown.workspace, job)
    attempt = question["automatic"]["attempt"] if question else None
    ask(shown, verb, job, {"reason": reason, "attempt": attempt}, no_wait=no_wait, timeout=timeout)


def _show_status(shown: Face) -> None:
    facts = views.status(shown.workspace)
    if shown.as_json:
        shown.say("", facts)
        return
    from daemon.cli import words  # rich is loaded only where something is drawn

    words.show(words.status(facts, views.inbox(shown.workspace), wishes.start_command(shown.workspace)))


def main() -> NoReturn:
    """The entry point."""
    run(app)


if __name__ == "__main__":
    main()
