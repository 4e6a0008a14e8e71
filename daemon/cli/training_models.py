"""training_models: what training has left, and whether it is whole."""

from typing import Annotated, Any, NoReturn

import typer

from daemon.cli.common import AsJson, BaseDir, Face, face, new_app, run, show_examples
from daemon.core.errors import Exit

NONE_YET = "no checkpoint yet: nothing was trained"

app = new_app(
    "training_models",
    "The models of a workspace. Without a command it lists the checkpoints.",
    "training_models checkpoints --base-dir ~/my-model",
    "training_models verify latest",
)


@app.callback(invoke_without_command=True)
def begin(context: typer.Context, base_dir: BaseDir = None, as_json: AsJson = False) -> None:
    context.obj = Face(base_dir, as_json)
    if context.invoked_subcommand is None:
        _list(context.obj)


@app.command(epilog=show_examples("training_models checkpoints", "training_models checkpoints --json"))
def checkpoints(context: typer.Context, base_dir: BaseDir = None, as_json: AsJson = False) -> None:
    """The checkpoints in current_model, the oldest first."""
    _list(face(context, base_dir, as_json))


def _list(shown: Face) -> None:
    from daemon import auditing

    found = auditing.list_checkpoints(shown.workspace)
    shown.say("\n".join(map(_line, found)) or NONE_YET, found)


def _line(one: dict[str, Any]) -> str:
    name = f"{one['checkpoint']:<20}"
    if one["job"] is None:
        return f"{name} its manifest is missing or damaged"
    standing = "accepted" if one["accepted"] else "final" if one["final"] else "on the way"
    return f"{name} {standing:<11} {one['bytes'] / 1e6:>10,.1f} MB  {one['created_at'][:19]}  {one['file']}"


@app.command(epilog=show_examples("training_models verify", "training_models verify latest --json"))
def verify(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="checkpoint-STEP, or latest.")] = None,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Compare every byte with the manifests: exit 0 all whole, 1 something is damaged."""
    from daemon import auditing

    shown = face(context, base_dir, as_json)
    found = auditing.verify_checkpoints(shown.workspace, names or [])
    lines = [f"{one['checkpoint']}: {one['damage'] or 'whole'}" for one in found]
    shown.say("\n".join(lines) or NONE_YET, found)
    raise typer.Exit(Exit.PROBLEM if any(one["damage"] for one in found) else Exit.GOOD)


def main() -> NoReturn:
    """The entry point."""
    run(app)


if __name__ == "__main__":
    main()
