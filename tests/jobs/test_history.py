"""What a log tells of a training: the last line of a step counts, and what was made again does not."""

from typing import Any

from daemon.jobs import history


def line(kind: str, step: int, attempt: int = 1, second: int = 0, **facts: Any) -> dict[str, Any]:
    at = f"2026-01-31T12:00:{second:02d}.000Z"
    return {"kind": kind, "time": at, "attempt": attempt, "step": 100 + step, "job_step": step, **facts}


def started(step: int, attempt: int = 1, second: int = 0) -> dict[str, Any]:
    return line("event", step, attempt, second, event="started")


def logged(step: int, attempt: int = 1, second: int = 0, **facts: Any) -> dict[str, Any]:
    return line("log", step, attempt, second, **facts)


# Attempt 1 is killed behind step 15; attempt 2 goes on from the checkpoint at step 8 and logs at other steps.
KILLED = [
    started(0),
    logged(5, second=1, loss=5.0, tokens_seen=50),
    line("event", 8, event="saved"),
    logged(10, second=2, loss=4.0, tokens_seen=100),
    line("event", 12, event="update_skipped"),
    logged(15, second=3, loss="NaN", tokens_seen=140),
    started(8, 2, second=10),
    logged(10, 2, second=11, loss=3.9, tokens_seen=101, tokens_trained=11),
    logged(14, 2, second=14, loss=3.0, tokens_seen=144, tokens_trained=15),
]


def test_the_last_line_of_a_step_counts_and_what_an_attempt_made_again_does_not() -> None:
    kept = [(entry["job_step"], entry["loss"]) for entry in history.counting(KILLED) if entry["kind"] == "log"]
    assert kept == [(5, 5.0), (10, 3.9), (14, 3.0)]


def test_a_line_written_twice_at_one_step_counts_once() -> None:
    found = history.curves([started(0), line("eval", 4, validation_loss=2.0), line("eval", 4, validation_loss=1.0)])
    assert found["evaluation"]["validation_loss"] == [1.0]


def test_the_curves_mark_borders_checkpoints_and_skipped_updates_of_what_counts() -> None:
    found = history.curves(KILLED)
    assert found["marks"] == {"attempts": [108], "checkpoints": [108], "skipped_updates": []}
    assert found["training"]["step"] == [105, 110, 114]


def test_what_is_no_finite_number_stays_what_it_is_in_the_data() -> None:
    assert history.curves(KILLED[:6])["training"]["loss"] == [5.0, 4.0, "NaN"]
    assert [history.number(value) for value in (1, 2.5, "NaN", "Infinity", None)] == [1.0, 2.5, None, None, None]


def test_a_retry_from_the_first_row_leaves_nothing_of_the_life_before() -> None:
    found = history.counting([*KILLED, started(0, 3), logged(4, 3, loss=9.0)])
    assert [entry["job_step"] for entry in found if entry["kind"] == "log"] == [4]


def test_the_time_of_all_attempts_is_summed_and_the_time_between_them_is_not() -> None:
    assert history.training_seconds(KILLED) == 3 + 4


def test_tokens_are_those_of_the_newest_line_that_counts() -> None:
    assert history.tokens(KILLED) == {"seen": 144, "trained": 15}
    assert history.tokens([started(0), logged(5)]) == {"seen": None, "trained": None}  # of an earlier release


def test_the_speed_is_the_mean_over_the_updates_that_count() -> None:
    slow_then_fast = [
        logged(10, tokens_per_second=100.0, steps_per_second=10.0),
        logged(20, tokens_per_second=50.0, steps_per_second=5.0),
    ]
    assert history.tokens_per_second(slow_then_fast) == round(200 / 3, 1)
    assert history.tokens_per_second([]) is None


def test_the_peak_of_memory_is_that_of_any_attempt() -> None:
    assert history.memory_peak_gb([logged(1, memory_bytes=3e9), started(0, 2), logged(1, 2, memory_bytes=2e9)]) == 3.0
    assert history.memory_peak_gb([]) is None


def test_before_and_after_are_the_evaluations_around_the_training() -> None:
    first, middle, last = line("eval", 0), line("eval", 7), line("eval", 10)
    assert history.first_and_last_evaluation([first, logged(5), middle, logged(10), last]) == (first, last)
    assert history.first_and_last_evaluation([logged(5), middle, logged(10)]) == (None, None)
    assert history.first_and_last_evaluation([]) == (None, None)
