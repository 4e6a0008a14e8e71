"""training_queue: files for the daemon, and what becomes of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import orjson
import typer

from daemon import views, wishes
from daemon.cli import training_queue_data
from daemon.cli.common import AsJson, BaseDir, Face, NoWait, Timeout, ask, face, new_app, run, show_examples
from daemon.core.errors import Exit, UsageError
from daemon.core.paths import Workspace
from daemon.core.records import Priority, State

MOST_SHOWN = 50

app = new_app(
    "training_queue",
    "Add files, see what waits and what became of it. Without a command it lists the queue.",
    "training_queue add capitals.jsonl --priority high",
    "training_queue wait capitals.jsonl",
)


def complete_job(context: typer.Context, incomplete: str) -> Iterator[str]:
    """Job ids for the shell's completion."""
    given = context.params.get("base_dir") or (context.parent.params.get("base_dir") if context.parent else None)
    return (job for job in sorted(views.job_ids(Workspace.at(given))) if job.startswith(incomplete))


JobText = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="A job's id, a unique beginning of it, or its file's name.", autocompletion=complete_job
    ),
]


@app.callback(invoke_without_command=True)
def begin(context: typer.Context, base_dir: BaseDir = None, as_json: AsJson = False) -> None:
    context.obj = Face(base_dir, as_json)
    if context.invoked_subcommand is None:
        _list(context.obj, everything=False, limit=None)


# ---- looking ----


@app.command("list", epilog=show_examples("training_queue list", "training_queue list --all --json"))
def list_jobs(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Also what has ended.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"Show at most so many that wait; else {MOST_SHOWN}, with --json all.")
    ] = None,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """What is in training and what waits, in its order."""
    _list(face(context, base_dir, as_json), everything, limit)


def _list(shown: Face, everything: bool, limit: int | None) -> None:
    limit = limit if shown.as_json else limit or MOST_SHOWN
    rows, inbox = views.queue(shown.workspace, everything, limit), views.inbox(shown.workspace)
    if shown.as_json:
        shown.say("", rows)
        return
    from daemon.cli import words  # rich is loaded only where something is drawn

    words.show(words.queue(rows) if rows else "nothing waits")
    if (more := views.count(shown.workspace, everything) - len(rows)) > 0:
        words.show(f"and {more:,} more: training_queue list --limit {len(rows) + more}")
    if inbox:
        words.show(f"in the inbox, not taken in yet: {', '.join(inbox)}")


@app.command(epilog=show_examples("training_queue status", "training_queue status --json | jq .normal"))
def status(context: typer.Context, base_dir: BaseDir = None, as_json: AsJson = False) -> None:
    """How many files are where."""
    shown = face(context, base_dir, as_json)
    counts = {"inbox": len(views.inbox(shown.workspace)), **views.status(shown.workspace)["queue"]}
    shown.say("\n".join(f"{name:<11}{count}" for name, count in counts.items()), counts)


@app.command(
    epilog=show_examples("training_queue show capitals.jsonl", "training_queue show 20260131T120000-0001 --json")
)
def show(context: typer.Context, job: JobText, base_dir: BaseDir = None, as_json: AsJson = False) -> None:
    """All that is known of one file: report, refused rows, attempts, verdict."""
    shown = face(context, base_dir, as_json)
    facts = views.job(shown.workspace, job)
    if shown.as_json:
        shown.say("", facts)
        return
    from daemon.cli import words  # rich is loaded only where something is drawn

    words.show(words.job(facts))


@app.command(
    epilog=show_examples("training_queue log capitals.jsonl", "training_queue log capitals.jsonl --follow --json")
)
def log(
    context: typer.Context,
    job: JobText,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """The log of a file's training; with --json the lines as they were written."""
    from daemon.cli.words import log_line

    shown = face(context, base_dir, as_json)
    job_id = views.find(shown.workspace, job)
    lines = views.follow_log(shown.workspace, job_id) if follow else views.log_lines(shown.workspace, job_id)
    for line in lines:
        print(orjson.dumps(line).decode() if shown.as_json else log_line(line), flush=follow)


@app.command(
    epilog=show_examples("training_queue wait capitals.jsonl", "training_queue wait capitals.jsonl --timeout 3600")
)
def wait(
    context: typer.Context,
    job: JobText,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up then.")] = None,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Until the file is trained: exit 0 completed, 1 ended otherwise, 6 timed out."""
    shown = face(context, base_dir, as_json)
    facts = wishes.await_end(shown.workspace, job, timeout)
    reason = f": {facts['reason']}\n  remedy: {facts['remedy'] or 'training_queue retry ID'}" if facts["reason"] else ""
    shown.say(f"{facts['id']} is {facts['state']}{reason}", facts)
    raise typer.Exit(Exit.GOOD if facts["state"] == State.COMPLETED else Exit.PROBLEM)


# ---- changing ----


@app.command(
    epilog=show_examples("training_queue add a.jsonl b.jsonl", "training_queue add a.jsonl --again --epochs 3")
)
def add(
    context: typer.Context,
    sources: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Data files; they are copied.")],
    priority: Annotated[Priority | None, typer.Option(help="high goes first, low last.")] = None,
    label: Annotated[str | None, typer.Option(help="A word of yours, shown with the job.")] = None,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="Wait until this job is completed.", autocompletion=complete_job)
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Train it although it was trained before.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="For these files only.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="For these files only.")] = None,
    no_wait: NoWait = False,
    timeout: Timeout = wishes.WAIT_SECONDS,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy files into the inbox, and wait until the daemon has taken them in."""
    shown = face(context, base_dir, as_json)
    if learning_rate == 0:
        raise UsageError("A learning rate of 0 trains nothing.", "give a rate above 0, such as 2e-5")
    given = {
        "priority": priority,
        "label": label,
        "after": wishes.find_after(shown.workspace, after) if after else None,
        "again": again or None,
        "epochs": epochs,
        "learning_rate": learning_rate,
    }
    sidecar = {name: value for name, value in given.items() if value is not None}
    workspace = shown.workspace
    for source in sources:
        wishes.check_source(workspace, source)  # all of them first: half of a command is worse than none
    known = views.job_ids(workspace)
    names = [wishes.drop(workspace, source, sidecar) for source in sources]
    taken = wishes.await_taken(workspace, names, known, 0 if no_wait else timeout)
    _tell_taken(shown, taken, no_wait)


def _tell_taken(shown: Face, taken: dict[str, dict[str, Any] | None], no_wait: bool) -> None:
    running = views.daemon_runs(shown.workspace)
    facts = [{"file": name, "inbox": job is None, "job": job} for name, job in taken.items()]
    texts = [_taken_in_words(name, job) for name, job in taken.items()]
    if not running:
        texts.append(f"no daemon runs; {wishes.start_command(shown.workspace)}")
    shown.say("\n".join(texts), facts)
    if any(job and job["state"] == State.FAILED for job in taken.values()):
        raise typer.Exit(Exit.BAD_DATA)
    if running and not no_wait and None in taken.values():
        raise typer.Exit(Exit.TIMED_OUT)


def _taken_in_words(name: str, job: dict[str, Any] | None) -> str:
    if job is None:
        return f"{name} lies in the inbox, not taken in yet"
    if job["state"] == State.FAILED:
        return f"{name} was refused: {job['reason']}\n  remedy: {job['remedy']}\n  it is kept as {job['id']}"
    if job["position"]:
        if job["rows"] is None:
            rows = "still being read"
        else:
            too_long = f", {job['too_long_rows']} too long" if job["too_long_rows"] else ""
            rows = f"{job['rows']} rows, {job['bad_rows']} refused{too_long}"
        return f"queued as #{job['position']}: {job['id']} ({rows})"
    return f"{job['state']}: {job['id']}"


@app.command(
    "set-priority",
    epilog=show_examples("training_queue set-priority a.jsonl high", "training_queue set-priority b.jsonl low"),
)
def set_priority(
    context: typer.Context,
    job: JobText,
    priority: Annotated[Priority, typer.Argument(help="high, normal or low")],
    no_wait: NoWait = False,
    timeout: Timeout = wishes.WAIT_SECONDS,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Let a waiting file go earlier or later."""
    shown = face(context, base_dir, as_json)
    ask(
        shown,
        "set_priority",
        views.find(shown.workspace, job),
        {"priority": priority},
        no_wait=no_wait,
        timeout=timeout,
    )


@app.command(epilog=show_examples("training_queue remove a.jsonl", "training_queue remove 20260131T120000-0001"))
def remove(
    context: typer.Context,
    job: JobText,
    no_wait: NoWait = False,
    timeout: Timeout = wishes.WAIT_SECONDS,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Take a waiting file out of the queue; its data is kept."""
    shown = face(context, base_dir, as_json)
    ask(shown, "remove", views.find(shown.workspace, job), {}, no_wait=no_wait, timeout=timeout)


@app.command(epilog=show_examples("training_queue retry a.jsonl", "training_queue retry --all-failed"))
def retry(
    context: typer.Context,
    job: Annotated[
        str | None, typer.Argument(metavar="ID", help="A job that ended.", autocompletion=complete_job)
    ] = None,
    all_failed: Annotated[bool, typer.Option("--all-failed", help="Every job in queue/failed.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Train it although its content was trained before.")] = False,
    no_wait: NoWait = False,
    timeout: Timeout = wishes.WAIT_SECONDS,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Let a failed, rejected or skipped file wait once more."""
    shown = face(context, base_dir, as_json)
    if all_failed == (job is not None):
        raise UsageError("It must be clear what to retry.", "give one ID, or --all-failed")
    job_id = views.find(shown.workspace, job) if job else None
    ask(
        shown,
        "retry",
        job_id,
        {"again": again} | ({"all_failed": True} if all_failed else {}),
        no_wait=no_wait,
        timeout=timeout,
    )


training_queue_data.add_to(app)


def main() -> NoReturn:
    """The entry point."""
    run(app)


if __name__ == "__main__":
    main()
