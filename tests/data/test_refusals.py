"""A file that would train nothing, too much, or what the template wrote is parked before the first step."""

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.core.paths import Workspace
from daemon.core.records import IntakeReport
from daemon.data.render import Renderer
from daemon.data.sanity import role_headers
from tests.helpers_data import MARKED, chat, jsonl, make_job, make_model_folder, make_workspace, run_intake

GOOD = [chat(f"What is {i}?", f"It is {i}.") for i in range(20)]
# Marks that go wrong: around nothing, and around the user's turn too.
NOTHING_MARKED = MARKED.replace("{% generation %}", "").replace(
    "{% endgeneration %}", "{% generation %}{% endgeneration %}"
)
USER_MARKED = (
    "{%- for message in messages %}{% generation %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endgeneration %}{%- endfor %}"
)


def report_on(folder: Path, data: bytes, template: str | None = MARKED, **settings: Any) -> IntakeReport:
    workspace = make_workspace(folder / "w", template, **settings)
    report = run_intake(workspace, make_job(workspace, data))
    assert report.usable == (report.reason is None) == (report.remedy is None)
    return report


def test_a_file_of_which_nothing_would_be_trained_is_parked(tmp_path: Path) -> None:
    report = report_on(tmp_path, jsonl(*GOOD), NOTHING_MARKED)
    assert report.reason == "no token would be trained: all labels are masked"


def test_a_file_in_which_users_turns_would_be_trained_is_parked(tmp_path: Path) -> None:
    report = report_on(tmp_path, jsonl(*GOOD), USER_MARKED)
    assert "in 20 of 20 (100 %) rows the beginning of a user's or system's turn would be trained" in (
        report.reason or ""
    )


def test_one_such_row_is_enough(tmp_path: Path) -> None:
    template = MARKED.replace(
        "message.content + '<|im_end|>' }}",
        "message.content + ('<|im_end|>\\n<|im_start|>user\\nsaid nobody' if message.more else '') + '<|im_end|>' }}",
    )
    odd = chat("q", "a")
    odd["messages"][1]["more"] = "yes"
    report = report_on(tmp_path, jsonl(*GOOD, odd), template)
    assert "the first is line 21" in (report.reason or "")


def test_the_share_of_trained_tokens_has_bounds_that_are_settings(tmp_path: Path) -> None:
    long = jsonl(chat("question " * 100, "a"))
    assert report_on(tmp_path / "a", long).usable
    few = report_on(tmp_path / "b", long, min_trained_percent=5)
    assert "% of the tokens would be trained; between 5 and 99 %" in (few.reason or "")
    many = report_on(tmp_path / "c", jsonl(*GOOD), max_trained_percent=20)
    assert "between 0.1 and 20 %" in (many.reason or "")


def test_plain_text_is_all_trained_and_may_be(tmp_path: Path) -> None:
    report = report_on(tmp_path, jsonl(*({"text": f"<|im_start|>user\n{i}"} for i in range(9))))
    assert (report.usable, report.trained_token_percent) == (True, 100.0)


def test_preferences_park_the_file_until_they_can_be_trained(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": f"b{i}"} for i in range(9)]
    report = report_on(tmp_path, jsonl(*rows, *GOOD))
    assert "9 of 29 (31 %) rows are preferences" in (report.reason or "")
    assert (report.preference_rows, report.bad_rows) == (9, 0)


def test_the_headers_of_other_roles_are_found_in_the_template(tmp_path: Path) -> None:
    renderer = Renderer(make_model_folder(tmp_path / "m", MARKED))
    assert [renderer.decode(header) for header in role_headers(renderer)] == ["<|im_start|>user", "<|im_start|>system"]


@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"]
)
def test_without_special_tokens_there_are_no_headers_to_look_for(tmp_path: Path, template: str | None) -> None:
    assert role_headers(Renderer(make_model_folder(tmp_path / "m", template))) == []


# ---- the rest of the report card ----


def test_the_card_says_lengths_thinking_shares_and_what_was_trained_before(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", MARKED)
    first = make_job(workspace, jsonl(*GOOD[:6]))
    run_intake(workspace, first)
    done = Workspace(workspace).queue / "completed" / "20250101T000000-0001-old"
    done.mkdir(parents=True)
    (first / "tokens/digests.bin").rename(done / "digests.bin")
    thinking = [chat("q", "<think>hm</think>a"), chat("q", "b")]
    thinking[1]["messages"][1]["reasoning_content"] = "hm"
    report = run_intake(workspace, make_job(workspace, jsonl(*GOOD, *thinking, GOOD[0])))
    assert (report.rows, report.duplicate_rows, report.trained_before_rows) == (23, 1, 6)
    assert sum(report.length_histogram.values()) == 23
    assert all(size & (size - 1) == 0 for size in report.length_histogram)
    assert report.think_tag_percent == pytest.approx(100 * 2 / 23, abs=0.01)
    assert report.trained_token_percent == pytest.approx(100 * report.trained_tokens / report.tokens, abs=0.01)
    assert (report.estimated_seconds, report.estimated_memory_bytes, report.checkpoint_bytes) == (None, None, None)
    assert (report.disk_free_bytes or 0) > 0


def test_the_time_follows_from_the_speed_of_the_newest_training_here(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", MARKED)
    for name, speeds in (("20250101T000000-0001-a", [5.0]), ("20250102T000000-0001-b", [3.0, 100.0, None])):
        (workspace / "runs" / name).mkdir(parents=True)
        lines = [json.dumps({"kind": "log", "tokens_per_second": speed}) for speed in speeds]
        (workspace / "runs" / name / "log.jsonl").write_text("\n".join(lines) + "\n")
    report = run_intake(workspace, make_job(workspace, jsonl(*GOOD), epochs=3))
    assert report.estimated_seconds == pytest.approx(report.tokens * 3 / 100.0, abs=0.1)


def test_a_report_of_an_earlier_release_is_still_read() -> None:
    old = {
        **{"usable": True, "file": "x", "sha256": "0", "bytes": 1, "format": "messages", "rows": 1, "bad_rows": 0},
        **{"too_long_rows": 0, "holdout_rows": 0, "duplicate_rows": 0, "tokens": 9, "trained_tokens": 5},
        **{"longest_row": 3, "estimated_steps": 7, "cache_key": "k", "reason": None, "remedy": None},
        **{"checked_at": "2026-01-31T12:00:00.000Z", "seconds": 0.1},
    }
    assert IntakeReport.model_validate(old).trained_before_rows is None
