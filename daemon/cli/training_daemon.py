"""training_daemon: run the daemon of a workspace, make a workspace, try it out, look whether this machine serves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from daemon.cli.common import AsJson, BaseDir, Face, face, new_app, run, show_examples
from daemon.core.errors import UsageError
from daemon.core.paths import Workspace

if TYPE_CHECKING:
    from daemon.models.create import Made

app = new_app(
    "training_daemon",
    "Train every file that is dropped into a workspace's inbox. Without a command it runs the daemon.",
    "training_daemon --base-dir ~/my-model",
    "training_daemon init ~/my-model --model ~/downloads/Qwen3-0.6B",
)


@app.callback(invoke_without_command=True)
def begin(context: typer.Context, base_dir: BaseDir = None, as_json: AsJson = False) -> None:
    context.obj = Face(base_dir, as_json)
    if context.invoked_subcommand is None:
        _run(context.obj, once=False)


@app.command("run", epilog=show_examples("training_daemon run", "training_daemon run --once --base-dir ~/my-model"))
def run_daemon(
    context: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="Obey the wishes that lie there, publish the status, end.")
    ] = False,
    base_dir: BaseDir = None,
) -> None:
    """Run the daemon until it is stopped."""
    _run(face(context, base_dir, False), once)


def _run(shown: Face, once: bool) -> NoReturn:
    from daemon.service import main as service  # the other commands do without what a daemon needs

    raise typer.Exit(service.run(shown.workspace, once=once))


@app.command(
    epilog=show_examples(
        "training_daemon init ~/my-model --model ~/downloads/Qwen3-0.6B",
        "training_daemon init ~/my-model --model Qwen/Qwen3-0.6B --method lora",
        "training_daemon init demo --demo",
    )
)
def init(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the new workspace.")],
    model: Annotated[str | None, typer.Option(metavar="PATH|HUB_ID", help="The model to train.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="A tiny model made here, with files to train it on.")] = False,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call the model.")] = None,
    method: Annotated[
        Literal["full", "lora", "qlora"] | None, typer.Option(help="Train all weights or an adapter; else what fits.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a workspace: copy or download the model once, choose settings that fit, say what was chosen and why."""
    if demo == (model is not None):
        raise UsageError("init needs one of --model and --demo.", f"training_daemon init {directory} --demo")
    from daemon.models import create

    workspace = Workspace.at(directory)
    if model is not None:
        made = create.from_model(workspace, model, name, method)
    else:
        made = create.from_embedded(workspace, *_demo_parts(name, method))
    face(context, None, as_json).say(_describe(made), _facts(made))


def _demo_parts(name: str | None, method: str | None) -> tuple[dict[str, object], dict[str, str]]:
    from daemon.cli import demo_data

    settings = dict(demo_data.SETTINGS)
    if name:
        settings |= {"model_name": name, "base_model": f"models/base/{name}"}
    if method:
        settings["training_method"] = method
    return settings, demo_data.files()


def _facts(made: "Made") -> dict[str, object]:
    return {
        "workspace": str(made.workspace.root),
        "model": {"name": made.model.name, "sha256": made.model.sha256, "bytes": made.model.bytes},
        "settings": made.settings,
        "estimate": made.estimate.facts(),
        "completed": made.completed,
    }


def _describe(made: "Made") -> str:
    """What was made and chosen, and why, with the next command."""
    from daemon.models.estimate import readable

    sizes, chosen, root = made.estimate, made.settings, made.workspace.root
    day = f"; up to {readable(sizes.written_bytes_a_day)} written a day at a save every 5 minutes"
    interval = "" if chosen.get("save_min_seconds") == 0 else day
    rows = f"{chosen.get('per_device_train_batch_size')} × {chosen.get('gradient_accumulation_steps')} rows an update"
    lines = [
        f"{'completed' if made.completed else 'made'} the workspace {root}",
        f"  model       {made.model.name}: {sizes.parameters:,} parameters, {readable(made.model.bytes)}, "
        f"sha256 {made.model.sha256[:12]}{', as it lay there' if made.model.already_there else ''}",
        f"  method      {chosen.get('training_method', 'full')}: {sizes.reason}",
        f"  memory      about {readable(sizes.full_bytes)} for full training, {readable(sizes.lora_bytes)} for LoRA",
        f"  disk        {readable(sizes.checkpoint_bytes)} a checkpoint, {sizes.checkpoints_kept} kept{interval}",
        f"  batch       {rows} of up to {chosen.get('max_length')} tokens, learning rate {chosen.get('learning_rate')}",
        f"  settings    {made.workspace.config}{' (left as it was)' if made.completed else ''}",
        "next:",
        f"  training_daemon --base-dir {root}",
        f"  cp my-data.jsonl {made.workspace.inbox}/",
    ]
    return "\n".join(lines)


@app.command(epilog=show_examples("training_daemon doctor", "training_daemon doctor --base-dir ~/my-model --json"))
def doctor(context: typer.Context, base_dir: BaseDir = None, as_json: AsJson = False) -> None:
    """Look whether this machine, and the workspace if there is one, can train; ends with 1 where something cannot."""
    from daemon.cli import doctor as examination

    shown = face(context, base_dir, as_json)
    raise typer.Exit(examination.examine(Workspace.at(shown.base_dir), shown))


@app.command(epilog=show_examples("training_daemon demo", "training_daemon demo /tmp/demo"))
def demo(
    directory: Annotated[Path | None, typer.Argument(metavar="DIR", help="A new folder; else ./demo.")] = None,
) -> None:
    """Show in a minute what this does: a tiny model learns thirty-six capitals, in a workspace of its own."""
    from daemon.cli import demo as story

    raise typer.Exit(story.tell(directory))


def main() -> NoReturn:
    """The entry point."""
    run(app)


if __name__ == "__main__":
    main()
