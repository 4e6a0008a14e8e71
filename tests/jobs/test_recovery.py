"""What happened -> what to do: every case of the two tables."""

import pytest

from daemon.core.attempts import ExitInfo, Outcome
from daemon.core.errors import WorkerExit
from daemon.core.heartbeat import Phase
from daemon.jobs.recovery import MAX_ATTEMPTS_WITHOUT_PROGRESS, MAX_NOT_FINITE, Action, Ending, Tally, classify, decide

AT = "2026-01-31T12:00:00.000Z"
MANY = MAX_ATTEMPTS_WITHOUT_PROGRESS


def outcome(kind: str) -> Outcome:
    return Outcome(kind=kind, code=0, message=f"said: {kind}", job_step=3, at=AT)


def ended(code: int | None, signal: int | None = None) -> ExitInfo:
    return ExitInfo(pid=7, code=code, signal=signal, at=AT)


UNSAID = (Ending.KILLED, Ending.VANISHED, Ending.NOT_STARTED, Ending.GENERATION_HUNG)
SAID = [ending for ending in Ending if ending not in UNSAID]


@pytest.mark.parametrize("ending", SAID)
@pytest.mark.parametrize("exit_info", [None, ended(0), ended(None, 9), ended(WorkerExit.BUSY)])
def test_what_the_worker_said_counts_whatever_else_is_known(ending: Ending, exit_info: ExitInfo | None) -> None:
    assert classify(outcome(ending.value), exit_info, Phase.GENERATE) == (ending, f"said: {ending.value}")


@pytest.mark.parametrize(
    ("exit_info", "phase", "ending", "words"),
    [
        (None, None, Ending.NOT_STARTED, "never came to life"),
        (None, Phase.TRAIN, Ending.VANISHED, "together with its fork server"),
        (ended(WorkerExit.BUSY), None, Ending.NOT_STARTED, "another worker"),
        (ended(WorkerExit.BUSY), Phase.TRAIN, Ending.NOT_STARTED, "another worker"),
        (ended(WorkerExit.OTHER_PROTOCOL), None, Ending.OTHER_PROTOCOL, "another version"),
        (ended(WorkerExit.DISK_FULL), None, Ending.DISK_FULL, "did not take"),
        (ended(WorkerExit.DISK_FULL), Phase.TRAIN, Ending.DISK_FULL, "did not take"),
        (ended(None, 9), None, Ending.NOT_STARTED, "never came to life"),
        (ended(None, 9), Phase.TRAIN, Ending.KILLED, "signal 9"),
        (ended(None, 11), Phase.TRAIN, Ending.KILLED, "signal 11"),
        (ended(1), None, Ending.KILLED, "exit code 1"),  # it would be tried again for ever
        (ended(1), Phase.TRAIN, Ending.KILLED, "vanished"),
        (ended(0), Phase.TRAIN, Ending.KILLED, "vanished"),
        (ended(1), Phase.GENERATE, Ending.GENERATION_HUNG, "hung inside a library"),
        (ended(None, 9), Phase.GENERATE, Ending.KILLED, "signal 9"),
    ],
)
def test_a_worker_that_said_nothing_is_judged_by_how_it_ended(
    exit_info: ExitInfo | None, phase: Phase | None, ending: Ending, words: str
) -> None:
    kind, reason = classify(None, exit_info, phase)
    assert kind is ending
    assert words in reason


ALWAYS = {
    Ending.DONE: Action.GATE,
    Ending.PAUSED: Action.GO_ON,
    Ending.STOPPED: Action.GO_ON,
    Ending.NOT_STARTED: Action.GO_ON,
    Ending.VANISHED: Action.GO_ON,
    Ending.GENERATION_HUNG: Action.GO_ON,
    Ending.BAD_CONFIG: Action.PAUSE,
    Ending.DISK_FULL: Action.PAUSE,
    Ending.OTHER_PROTOCOL: Action.PAUSE,
    Ending.BAD_DATA: Action.FAIL,
}
TRIED_AGAIN = [Ending.NOT_FINITE, Ending.GPU, Ending.BUG, Ending.KILLED]


@pytest.mark.parametrize("without_progress", [0, 1, MANY - 1, MANY, 10 * MANY])
@pytest.mark.parametrize(("ending", "action"), ALWAYS.items())
def test_these_endings_have_one_answer_however_often_they_come(
    ending: Ending, action: Action, without_progress: int
) -> None:
    decision = decide(ending, "because", Tally(without_progress))
    assert (decision.action, decision.reason) == (action, "because")


@pytest.mark.parametrize("ending", TRIED_AGAIN)
@pytest.mark.parametrize(
    ("without_progress", "action"),
    [(0, Action.GO_ON), (1, Action.GO_ON), (2, Action.GO_ON), (3, Action.FAIL), (4, Action.FAIL)],
)
def test_these_are_tried_again_until_three_attempts_made_no_progress(
    ending: Ending, without_progress: int, action: Action
) -> None:
    decision = decide(ending, "because", Tally(without_progress))
    assert decision.action is action
    assert "because" in decision.reason
    assert (f"{without_progress} attempts" in decision.reason) == (action is Action.FAIL)


def test_every_ending_stands_in_one_of_the_tables() -> None:
    assert {*ALWAYS, *TRIED_AGAIN, Ending.OUT_OF_MEMORY} == set(Ending)


@pytest.mark.parametrize(("rows", "action"), [(8, Action.GO_ON), (2, Action.GO_ON), (1, Action.FAIL)])
def test_out_of_memory_is_tried_with_fewer_rows_while_there_are_fewer(rows: int, action: Action) -> None:
    decision = decide(Ending.OUT_OF_MEMORY, "because", Tally(without_progress=MANY, micro_batch_rows=rows))
    assert decision.action is action and "because" in decision.reason


def test_numbers_that_are_not_finite_end_a_job_in_time_although_it_advances() -> None:
    tries = [decide(Ending.NOT_FINITE, "because", Tally(not_finite=n)).action for n in range(1, MAX_NOT_FINITE + 1)]
    assert tries == [Action.GO_ON] * (MAX_NOT_FINITE - 1) + [Action.FAIL]
