"""What a pass over a file has found -> whether it may be trained, why not, and what should be known of it."""

from daemon.core.config import Settings
from daemon.core.paths import JOB_REJECTED_ROWS
from daemon.data import notices
from daemon.data.survey import Counts
from daemon.data.tokens import TokensMeta

Verdict = tuple[str, str] | None  # reason and remedy where the file may not be trained


def judge(counts: Counts, settings: Settings) -> Verdict:
    """Why the file may not be trained, and the remedy; None where it may."""
    if counts.unusable:
        return counts.unusable.reason, f"{counts.unusable.remedy}, and drop the file again"
    if not counts.rows:
        return "the file is empty", "drop a file with at least one row"
    for look in (_judge_kind, _judge_masks, _judge_lengths, _judge_bad, _judge_rest):
        if verdict := look(counts, settings):
            return verdict
    return None


def _judge_kind(counts: Counts, settings: Settings) -> Verdict:
    if not counts.preferences:
        return None
    return (
        f"{of(counts.preferences, counts)} rows are preferences (chosen and rejected), which cannot be trained yet",
        "keep the file until they can; or drop the good answers alone, as prompt and completion",
    )


def _judge_masks(counts: Counts, settings: Settings) -> Verdict:
    """What a wrong mask looks like: it would train the model, to no good."""
    template = "correct the chat template in the model's folder (its {% generation %} marks)"
    if counts.with_headers:
        return (
            f"in {of(counts.with_headers, counts)} rows the beginning of a user's or system's turn would be trained; "
            f"the first is {counts.unit} {counts.first_header_line}",
            f"remove the template's own markers from the answers, or {template}, and drop the file again",
        )
    if counts.masked and counts.masked == counts.bad == counts.rows - counts.too_long - counts.in_holdout:
        return "no token would be trained: all labels are masked", f"fill in the answers, or {template}"
    share = trained_percent(counts)
    if share is None or settings.min_trained_percent <= share <= settings.max_trained_percent:
        return None
    return (
        f"{share:.3g} % of the tokens would be trained; between {settings.min_trained_percent:g} and "
        f"{settings.max_trained_percent:g} % is usual for conversations",
        f"look at the rows with: training_queue preview FILE; {template}, "
        "or set min_trained_percent and max_trained_percent in config.json where it is meant so",
    )


def _judge_lengths(counts: Counts, settings: Settings) -> Verdict:
    if share(counts.too_long, counts) <= settings.block_truncation_percent:
        return None
    fits, all_fit = counts.fitting_length(settings.warn_truncation_percent), max(counts.too_long_lengths)
    return (
        f"{of(counts.too_long, counts)} rows are longer than max_length {settings.max_length}; "
        f"{settings.block_truncation_percent:g} % may be",
        f"set max_length to {fits} in config.json"
        + (f" ({all_fit} for every row to fit)" if all_fit > fits else "")
        + ", or shorten the rows, and drop the file again",
    )


def _judge_bad(counts: Counts, settings: Settings) -> Verdict:
    if share(counts.bad, counts) <= settings.max_bad_row_percent:
        return None
    return (
        f"{of(counts.bad, counts)} rows are bad, {settings.max_bad_row_percent:g} % may be; "
        f"the first is {counts.first_bad}",
        f"correct the rows listed in {JOB_REJECTED_ROWS} and drop the file again",
    )


def _judge_rest(counts: Counts, settings: Settings) -> Verdict:
    if sum(counts.formats.values()):
        return None
    first = counts.first_bad or ("all of them are in the holdout" if counts.in_holdout else "all are too long")
    return (
        f"no row can be trained: {first}",
        f"correct the rows listed in {JOB_REJECTED_ROWS} and drop the file again",
    )


def warnings(counts: Counts, settings: Settings, holdout: TokensMeta | None, in_suites: int = 0) -> list[str]:
    """What does not stop a file, and should be known."""
    found = []
    if share(counts.too_long, counts) > settings.warn_truncation_percent:
        done = "cut" if settings.excess_length == "truncate" else "left out"
        found.append(f"{of(counts.too_long, counts)} rows are longer than max_length {settings.max_length} and {done}")
    if counts.cut_off:
        found.append("the last line is not whole: the file seems cut off")
    if in_suites:
        found.append(f"data/benchmarks has {in_suites} of these rows too: what they measure is no test any more")
    found += notices.warnings(counts.notes, settings.enable_thinking)
    if holdout and holdout.left_out_rows:
        found.append(f"{holdout.left_out_rows} rows of the holdout in data/validation are bad or too long and not used")
    return found


def trained_percent(counts: Counts) -> float | None:
    """Of the tokens of conversations; None where there are none."""
    return 100 * counts.chat_trained_tokens / counts.chat_tokens if counts.chat_tokens else None


def share(part: int, counts: Counts) -> float:
    """In percent of the rows."""
    return 100 * part / counts.rows if counts.rows else 0.0


def of(part: int, counts: Counts) -> str:
    return f"{part} of {counts.rows} ({share(part, counts):.3g} %)"
