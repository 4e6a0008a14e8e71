"""report.md: one page on one file's training, to be read over breakfast."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon.core import files, room, tails
from daemon.core.attempts import ExitInfo, Outcome
from daemon.core.paths import Attempt, Run, Workspace
from daemon.core.records import IntakeReport, State, now
from daemon.jobs import history
from daemon.jobs.history import Line
from daemon.jobs.store import Found
from daemon.service.results import read_results

SHOWN_CHARACTERS = 120
SAMPLES = 4
SKIPPED_SHOWN = 10
# Of the log: what a training did not do to its end, in words.
ENDED_BEFORE = {
    "stopped_early": "training ended before the last row",
    "generation_off": "nothing more was generated",
}
# Of events.jsonl: what went wrong and was mended, or waits for somebody.
INCIDENTS = ("checkpoint_damaged", "set_aside", "model_damaged", "trained_again", "error")


def write_report(
    workspace: Workspace,
    found: Found,
    state: State,
    reason: str | None,
    remedy: str | None,
    report: IntakeReport | None,
) -> None:
    """Of a job that ends in this state. One that never began has its card in its own folder, and no page here."""
    run = workspace.run(found.id)
    if not run.root.is_dir():
        return
    try:
        page = "\n".join(_page(workspace, run, found, state, reason, remedy, report)) + "\n"
    except Exception as error:  # a page that cannot be made must not keep a job from its end
        if room.refusal(error):
            raise
        logging.getLogger("daemon").exception("no report of %s", found.id)
        return
    files.write(run.report, page)


def _page(
    workspace: Workspace,
    run: Run,
    found: Found,
    state: State,
    reason: str | None,
    remedy: str | None,
    report: IntakeReport | None,
) -> Iterator[str]:
    lines, results = history.read(run.log), read_results(run)
    newest = run.newest_attempt()
    if newest is None or results.get("attempt") != newest.number:
        results = {}  # of an earlier life of this job: what it had learned then is in the model
    yield f"# {_line(found.job.file)}: {state.value}"
    yield ""
    yield f"Job `{found.id}`, {now()[:16].replace('T', ' ')} UTC." + (f" {_sentence(reason)}" if reason else "")
    if remedy:
        yield f"What to do: `{remedy}`" if remedy.startswith("training_") else f"What to do: {remedy}"
    yield from _trained(results, lines)
    yield from _left_out(report)
    yield from _figures(results, lines)
    yield from _samples(workspace, lines, results)
    yield from _incidents(workspace, run, lines)
    yield from _places(run, results)


# ---- the chapters ----


def _trained(results: dict[str, Any], lines: list[Line]) -> Iterator[str]:
    yield from ("", "## What was trained", "")
    kept = history.of_kind(history.counting(lines), "log")
    steps = f"{kept[-1]['job_step']:,}" if kept else "no"
    tokens = history.tokens(lines)
    spent = history.training_seconds(lines)
    yield f"- {steps} updates of this file in {_duration(spent)}" + (
        f", {tokens['seen']:,} tokens ({tokens['trained']:,} of them trained)" if tokens["seen"] else ""
    )
    if results:
        yield f"- model: {results['model']} ({results['method']}), grown from {results['base_version']}"
        yield f"- its weights contain {results['total_steps']:,} updates of {_count(len(results['files']), 'file')}"
        peak, speed = results["metrics"]["memory_peak_gb"], results["metrics"]["throughput"]["training"]
        if speed:
            yield f"- {speed:,.0f} tokens a second" + (f", {peak:g} GB of memory at most" if peak else "")
    if gate := results.get("gate"):
        yield f"- the gate ({gate['mode']}): **{'passed' if gate['passed'] else 'rejected'}**; {gate['reason']}"


def _left_out(report: IntakeReport | None) -> Iterator[str]:
    yield from ("", "## The file", "")
    if report is None:
        yield "Its report card is not there any more."
        return
    yield f"- {report.rows:,} rows, {report.tokens:,} tokens ({report.format or 'no known format'})"
    counts = (
        (report.bad_rows, "bad, see `rejected.jsonl`"),
        (report.too_long_rows, "longer than `max_length`"),
        (report.holdout_rows, "in the holdout"),
    )
    said = [f"{count:,} {what}" for count, what in counts if count]
    yield f"- left out: {'; '.join(said) or 'nothing'}"
    if report.duplicate_rows:
        yield f"- {report.duplicate_rows:,} rows stand in it more than once, and were trained as often"
    yield from (f"- warning: {warning}" for warning in report.warnings)


def _figures(results: dict[str, Any], lines: list[Line]) -> Iterator[str]:
    yield from ("", "## Before and after", "")
    begin, end = history.first_and_last_evaluation(lines)
    metrics, baselines = results.get("metrics", {}), results.get("baselines", {})
    base, previous = baselines.get("base_model") or {}, baselines.get("previous_version") or {}
    yield from ("| | base model | accepted before | this training |", "| --- | --- | --- | --- |")
    before = previous.get("holdout", {}).get("loss") if results else (begin or {}).get("validation_loss")
    after = metrics["holdout"]["loss"] if results else (end or {}).get("validation_loss")
    yield _row("holdout loss", base.get("holdout", {}).get("loss"), before, after)
    for name, found in metrics.items():
        if isinstance(found, dict) and "questions" in found:
            for key, words in (("perplexity", "perplexity"), ("exact_match", "exact match")):
                if key != "exact_match" or found["questions"]:
                    label = f"{_cell(name)}: {words}"
                    yield _row(label, *((where.get(name) or {}).get(key) for where in (base, previous)), found[key])
    yield from _reasons(metrics, base)
    yield from ("", f"Training loss at the end: {_figure(history.final_loss(lines))}.")


def _reasons(metrics: dict[str, Any], base: dict[str, Any]) -> Iterator[str]:
    """Why figures are lacking, and what was left out of the suites."""
    notes = []
    for whose, found in (("", metrics), (", base model", base)):
        for name, figures in found.items():
            if isinstance(figures, dict) and figures.get("reason"):
                notes.append(f"- {_line(name)}{whose}: {_line(figures['reason'])}")
            if not whose and isinstance(figures, dict) and figures.get("left_out_rows"):
                notes.append(
                    f"- {_line(name)}: {figures['left_out_rows']} of its rows are bad or too long, and left out"
                )
    if notes:
        yield from ("", *notes)


def _samples(workspace: Workspace, lines: list[Line], results: dict[str, Any]) -> Iterator[str]:
    """What the model answered before and after; before the first step of a later file nothing is asked again."""
    begin, end = history.first_and_last_evaluation(lines)
    if not end or not end.get("examples"):
        return
    if begin is None and len(results.get("files", [])) > 1:
        earlier = history.read(workspace.run(results.get("previous_job") or "").log)
        _, begin = history.first_and_last_evaluation(earlier)
    known = {example["prompt"]: example for example in (begin or {}).get("examples", [])}
    accuracy = end.get("accuracy_percent")
    yield from ("", "## Samples", "")
    if accuracy is not None:
        yield f"{accuracy:g} % of the examples are answered as expected, {_percent(begin)} were before."
        yield ""
    yield from ("| | prompt | expected | before | after |", "| --- | --- | --- | --- | --- |")
    for example in end["examples"][:SAMPLES]:
        before = known.get(example["prompt"], {}).get("model_output")
        mark = {True: "✓", False: "✗", None: "?"}[example["match"]]
        cells = (example["prompt"], example["golden_answer"], before, example["model_output"])
        yield f"| {mark} | " + " | ".join("–" if cell is None else _cell(cell) for cell in cells) + " |"


def _incidents(workspace: Workspace, run: Run, lines: list[Line]) -> Iterator[str]:
    yield from ("", "## Incidents", "")
    said = [*_attempts(run), *_skipped(lines)]
    timeouts = sum(line.get("generation_timeouts") or 0 for line in history.of_kind(lines, "eval"))
    if timeouts:
        said.append(f"- {timeouts} evaluations whose answers took too long or failed; such answers count as unknown")
    said += [f"- {ENDED_BEFORE[e['event']]}: {_line(e['reason'])}" for e in lines if e.get("event") in ENDED_BEFORE]
    left_out = [line["left_out"] for line in lines if line.get("left_out")]
    if left_out:
        said.append(
            f"- {len(left_out[-1])} rows were left out: two attempts ended for updates with them (see log.jsonl)"
        )
    inexact = [line["inexact"] for line in lines if line.get("inexact")]
    if inexact:
        said.append(f"- it went on, but not bit for bit: {_line(inexact[-1])}")
    job = run.root.name
    events = [e for e in tails.last_lines(workspace.events) if e.get("job") == job and e.get("event") in INCIDENTS]
    said += [f"- {event['time'][:16].replace('T', ' ')}: {_line(event['message'])}" for event in events]
    yield from said or ["None: one attempt, from its first step to its last."]


def _attempts(run: Run) -> Iterator[str]:
    newest = run.newest_attempt()
    attempts = [run.attempt(number) for number in range(1, (newest.number if newest else 0) + 1)]
    if len(attempts) > 1 or (attempts and not _ended_well(attempts[0])):
        yield from (f"- attempt {attempt.number}: {_line(_ending(attempt))}" for attempt in attempts)


def _ended_well(attempt: Attempt) -> bool:
    outcome = _load(Outcome, attempt.outcome)
    return outcome is not None and outcome.kind == "done"


def _ending(attempt: Attempt) -> str:
    if outcome := _load(Outcome, attempt.outcome):
        return f"{outcome.kind.replace('_', ' ')}: {outcome.message}"
    if ended := _load(ExitInfo, attempt.exit):
        how = f"signal {ended.signal}" if ended.signal else f"exit code {ended.code}"
        return f"ended by {how}; the next one went on from the newest checkpoint"
    return "lost with the machine or all of its processes; the next one went on from the newest checkpoint"


def _load(kind: Any, path: Path) -> Any:
    try:
        return kind.load(path)
    except ValueError:
        return None


def _skipped(lines: list[Line]) -> Iterator[str]:
    skipped = [line for line in history.counting(lines) if line.get("event") == "update_skipped"]
    for line in skipped[:SKIPPED_SHOWN]:
        rows = ", ".join(map(str, line.get("lines", [])[:SKIPPED_SHOWN]))
        yield (
            f"- update {line['job_step']} was kept out of the weights: loss {line['loss']}, gradient norm "
            f"{line['grad_norm']}; its rows stand in lines {rows}"
        )
    if len(skipped) > SKIPPED_SHOWN:
        yield f"- and {len(skipped) - SKIPPED_SHOWN} more updates like these"


def _places(run: Run, results: dict[str, Any]) -> Iterator[str]:
    yield from ("", "## Where things lie", "")
    if (run.root / "curves.png").is_file():
        yield from ("![curves](curves.png)", "")
    if (results.get("gate") or {}).get("passed"):
        yield f"- the model: `{results['checkpoint']}`"
    there = ("results.yaml", "curves.svg", "curves.json", "log.jsonl", "worker.log", "config.yaml")
    yield f"- here: {', '.join(f'`{name}`' for name in there if (run.root / name).is_file())}"
    yield f"- the data and its report card: `training_queue show {run.root.name}`"


# ---- words ----


def _row(name: str, *values: float | None) -> str:
    return f"| {name} | " + " | ".join(map(_figure, values)) + " |"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _figure(value: Any) -> str:
    number = history.number(value)
    return "–" if number is None else f"{number:.4g}"


def _percent(line: Line | None) -> str:
    value = (line or {}).get("accuracy_percent")
    return "an unknown share" if value is None else f"{value:g} %"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _line(text: str) -> str:
    """Text of others in one line, its backquotes and angle brackets harmless."""
    return " ".join(text.split()).replace("<", "&lt;").replace("`", "'")


def _cell(text: str) -> str:
    short = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return _line(short).replace("|", "\\|") or "(nothing)"
