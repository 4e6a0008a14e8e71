"""A report card and a preview, for people."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from daemon.cli.common import in_words
from daemon.cli.words import number

HISTOGRAM_CELLS = 30
# Settings that are left to the daemon, as people say them.
CHOSEN = {
    "num_train_epochs": "each row {} times",
    "effective_batch_size": "{} rows an update",
    "per_device_train_batch_size": "{} rows at a time",
    "logging_steps": "a line of the log every {} updates",
    "eval_steps": "an evaluation every {}",
}
OPEN, CLOSE = "⟦", "⟧"  # around what is trained, where there is no colour


def card(facts: dict[str, Any], auto_adjust: bool) -> RenderableType:
    """What is in the file, what it will take, what is wrong, and the verdict last."""
    report = facts["report"]
    lines = [Text(report["file"], style="bold"), *summary(report)]
    for trouble in facts["troubles"]:
        lines += _trouble(trouble, report["numbered"])
    lines += [_line("warning", warning, "yellow") for warning in report["warnings"]]
    lines.append(_verdict(facts))
    if not report["usable"]:
        lines.append(_line("remedy", report["remedy"]))
    if auto_adjust:
        lines.append(_line("max_length", _adjusted(facts)))
    return Group(*lines)


def summary(report: dict[str, Any]) -> list[Text]:
    """The figures of a report card. Unknown ones are left out."""
    lines = [_line("format", f"{report.get('format') or 'none that is known'}, {size(report.get('bytes'))}")]
    left_out = [
        f"{report[name]} {what}"
        for name, what in (
            ("bad_rows", "bad"),
            ("too_long_rows", "too long"),
            ("holdout_rows", "in the holdout"),
            ("preference_rows", "preferences"),
        )
        if report.get(name)
    ]
    lines.append(_line("rows", f"{report['rows']:,} good" + "".join(f", {part}" for part in left_out)))
    known = [
        f"{report[name]:,} {what}"
        for name, what in (("duplicate_rows", "more than once in it"), ("trained_before_rows", "trained before"))
        if report.get(name)
    ]
    lines += [_line("", ", ".join(known))] if known else []
    if report.get("tokens"):
        trained, thinking = report.get("trained_token_percent"), report.get("think_tag_percent")
        reasons = f", {number(thinking, '.3g')} % of the rows reason" if thinking else ""
        lines.append(_line("tokens", f"{report['tokens']:,}, {number(trained, '.3g')} % trained{reasons}"))
        lines += _histogram(report)
        lines.append(_line("training", _costs(report)))
    if report.get("chosen"):
        said = ", ".join(CHOSEN.get(key, f"{key} {{}}").format(value) for key, value in report["chosen"].items())
        lines.append(_line("chosen", f"{said}; what config.json sets is taken instead"))
    return lines


def _histogram(report: dict[str, Any]) -> list[Text]:
    rows = report.get("length_histogram") or {}
    most = max(rows.values(), default=0)
    bars = [f"to {int(end):>7,}  {'█' * -(-HISTOGRAM_CELLS * count // most)} {count:,}" for end, count in rows.items()]
    return [_line("" if i else "lengths", bar) for i, bar in enumerate(bars)]


def _costs(report: dict[str, Any]) -> str:
    parts = [f"{report['estimated_steps']:,} updates"]
    if report.get("estimated_seconds") is not None:
        parts.append(f"about {in_words(report['estimated_seconds'])}")
    if report.get("estimated_memory_bytes"):
        parts.append(f"about {size(report['estimated_memory_bytes'])} of memory")
    if report.get("checkpoint_bytes"):
        parts.append(f"{size(report['checkpoint_bytes'])} a checkpoint ({size(report.get('disk_free_bytes'))} free)")
    return ", ".join(parts)


def _trouble(trouble: dict[str, Any], unit: str) -> list[Text]:
    places = ", ".join(map(str, trouble["lines"]))
    more = trouble["count"] - len(trouble["lines"])
    where = f"{unit}{'s' if trouble['count'] > 1 else ''} {places}" + (f" and {more} more" if more else "")
    lines = [
        _line("left out" if trouble["harmless"] else "wrong", f"{trouble['count']} × {trouble['reason']}", "yellow"),
        _line("", f"where: {where}"),
        _line("", f"mend:  {trouble['fix']}"),
    ]
    return lines + ([_line("", f"such as: {visible(trouble['row'][:100])}")] if trouble["row"] else [])


def _verdict(facts: dict[str, Any]) -> Text:
    report = facts["report"]
    if not report["usable"]:
        return _line("verdict", f"it would not be trained: {report['reason']}", "red")
    if not all(trouble["harmless"] for trouble in facts["troubles"]):
        return _line("verdict", f"it would be trained without what is wrong: {report['rows']:,} rows", "yellow")
    return _line("verdict", "good", "green")


def _adjusted(facts: dict[str, Any]) -> str:
    proposed = facts["max_length_proposed"]
    if proposed is None:
        return "nothing to adjust"
    if facts["max_length_set"]:
        return f"set to {proposed} in config.json; it holds from the next file on"
    return f"{proposed} fits; set it with: training_queue validate FILE --auto-adjust --yes"


def rows(found: list[dict[str, Any]], *, coloured: bool) -> RenderableType:
    """Rows of a preview."""
    lines: list[Text] = []
    for row in found:
        unit, place = next(iter(row.items()))
        if "reason" in row:
            lines += [Text(f"── {unit} {place}: not trained: {row['reason']} ({row['fix']})", style="red"), Text("")]
            continue
        long = ", too long: left out or cut" if row["too_long"] else ""
        figures = f"{row['tokens']} tokens, {row['trained_tokens']} of them trained{long}"
        lines.append(Text(f"── {unit} {place}: {row['format']}, {figures}", style="dim"))
        lines += [_pieces(row["pieces"], coloured), Text("")]
    return Group(*lines)


def _pieces(pieces: list[dict[str, Any]], coloured: bool) -> Text:
    text = Text()
    for piece in pieces:
        if not piece["trained"]:
            text.append(visible(piece["text"]))
        elif coloured:
            text.append(visible(piece["text"]), style="black on green")
        else:
            text.append(f"{OPEN}{visible(piece['text'])}{CLOSE}")
    return text


def visible(text: str) -> str:
    """Text of a file that can be shown: what would steer a terminal is spelled out."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def size(count: float | None) -> str:
    """Bytes as people say them."""
    if count is None:
        return "?"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _line(name: str, text: str, style: str = "") -> Text:
    return Text(f"  {name:<11}", style="dim").append(visible(text), style=style or "not dim")


# ---- audit ----


def audit(facts: dict[str, Any]) -> Iterator[str]:
    """What became of a file, line by line."""
    yield f"{facts['file']}: {facts['rows']:,} rows, sha256 {facts['sha256'][:12]}…"
    for job in facts["jobs"]:
        where = "in the model" if job["in_model"] else "not in the model"
        kept = f" ({job['checkpoint']})" if job["checkpoint"] else ""
        yield f"  {job['id']}: {job['state']}, {where}{kept}, {job['rows_trained']:,} rows trained, repeats counted"
    for times, count in facts["rows_by_times"].items():
        yield (
            f"  {count:,} rows are in the model, trained {_so_often(int(times))}"
            if times != "0"
            else (f"  {count:,} rows are not in the model")
        )
    yield ""
    for span in facts["spans"]:
        place = f"{span['first']}" if span["first"] == span["last"] else f"{span['first']}–{span['last']}"
        blank = span["last"] - span["first"] + 1 - span["rows"]
        yield f"{facts['unit']} {place:<17} {_fate(span)}" + (f" ({blank} blank lines between)" if blank else "")


def _fate(span: dict[str, Any]) -> str:
    if span["times"]:
        return f"in the model, trained {_so_often(span['times'])}"
    if span["pending"]:
        return f"not in the model yet, trained {_so_often(span['pending'])} in the running job"
    return "not trained" + (f": {span['reason']}" if span["reason"] else "")


def _so_often(times: int) -> str:
    return {1: "once", 2: "twice"}.get(times, f"{times} times")
