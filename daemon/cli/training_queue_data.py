"""The verbs of training_queue that read a data file: validate, preview, holdout before it is dropped, audit after."""

from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.common import AsJson, BaseDir, Face, face, show_examples
from daemon.core.errors import Exit, UsageError

File = Annotated[Path, typer.Argument(metavar="FILE", help="A data file, wherever it lies; it is only read.")]


def validate(
    context: typer.Context,
    file: File,
    auto_adjust: Annotated[
        bool, typer.Option("--auto-adjust", help="Say which max_length fits; with --yes, set it in config.json.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do what --auto-adjust proposes.")] = False,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """What is good and what is wrong in a file: exit 0 all good, 1 something is wrong, 7 it cannot be trained."""
    from daemon import checking  # tokenizers are loaded only where a file is read

    shown = face(context, base_dir, as_json)
    if yes and not auto_adjust:
        raise UsageError("--yes does what --auto-adjust proposes.", "give both")
    card = checking.validate(shown.workspace, file)
    proposed = checking.fitting_length(shown.workspace, card.report) if auto_adjust else None
    if proposed and yes:
        checking.set_max_length(shown.workspace, proposed)
        card = checking.validate(shown.workspace, file)
    facts = card.facts() | {"max_length_proposed": proposed, "max_length_set": bool(proposed and yes)}
    _tell(shown, facts, auto_adjust)
    raise typer.Exit(Exit.GOOD if card.good else Exit.PROBLEM if card.report.usable else Exit.BAD_DATA)


def _tell(shown: Face, facts: dict[str, object], auto_adjust: bool) -> None:
    if shown.as_json:
        shown.say("", facts)
        return
    from daemon.cli import card_words, words  # rich is loaded only where something is drawn

    words.show(card_words.card(facts, auto_adjust))


def preview(
    context: typer.Context,
    file: File,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many.")] = 3,
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """The first rows as the model sees them; what is trained is coloured, or stands in ⟦…⟧ where there is no colour."""
    from daemon import checking

    shown = face(context, base_dir, as_json)
    found = checking.preview(shown.workspace, file, rows)
    if shown.as_json:
        shown.say("", found)
        return
    from daemon.cli import card_words, words

    words.show(card_words.rows(found, coloured=words.has_colours()))


def holdout(
    context: typer.Context,
    file: File,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many; at most half of the good ones.")],
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy rows of a file into data/validation: they measure the model, and are never trained."""
    from daemon import checking

    shown = face(context, base_dir, as_json)
    done = checking.hold_out(shown.workspace, file, rows)
    shown.say(
        f"{done['rows']} of {done['of']} good rows of {done['file']} are in the holdout now: {done['holdout']}\n"
        "  they are left out wherever a file that has them is trained, this one too",
        done,
    )


def audit(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A data file, wherever a copy lies, or a job's id.")],
    base_dir: BaseDir = None,
    as_json: AsJson = False,
) -> None:
    """How often each row of a file was trained, and whether it is in the model; rows that fared alike as one line."""
    from daemon import auditing  # reading files takes libraries that other commands need not wait for
    from daemon.cli import card_words

    shown = face(context, base_dir, as_json)
    found = auditing.audit(shown.workspace, file)
    shown.say("\n".join(card_words.audit(found.facts())), found.facts())


def add_to(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    adjusting = "training_queue validate new.csv --auto-adjust --yes"
    app.command(epilog=show_examples("training_queue validate new.jsonl", adjusting))(validate)
    app.command(epilog=show_examples("training_queue preview new.jsonl --rows 10"))(preview)
    app.command(epilog=show_examples("training_queue audit new.jsonl", "training_queue audit new.jsonl --json"))(audit)
    app.command(epilog=show_examples("training_queue holdout all.jsonl --rows 200"))(holdout)
