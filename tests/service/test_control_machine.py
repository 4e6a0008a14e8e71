"""Control in any order, with deaths and restarts: answered once, never another job, no row lost or doubled."""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.core.records import ENDED_STATES, Desired, State, Verdict
from daemon.jobs import ledger
from tests.helpers_control import UPDATES, Stage
from tests.helpers_disk import without_waiting

ENOUGH_ROUNDS = 200


class Control(RuleBasedStateMachine):
    """Every rule is one thing that may happen; rounds of the daemon's loop are rules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="control-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.quick = ExitStack()
        self.quick.enter_context(without_waiting())
        self.jobs: list[str] = []
        self.removed: set[str] = set()
        self.skipped: set[str] = set()  # those that somebody asked to skip
        self.decided: dict[str, set[str]] = {"approve": set(), "reject": set()}  # those that somebody asked to
        self.asked: dict[str, str] = {}  # wish -> verb
        self.last_word: tuple[str, str] | None = None  # of pause and resume
        self.said: dict[str, str] = {}  # wish -> its answer as it was first read

    @initialize(holdout=st.booleans())
    def begin(self, holdout: bool) -> None:
        self.stage = Stage(self.root / "w", holdout=holdout)

    def teardown(self) -> None:
        try:
            if hasattr(self, "stage"):
                self.come_to_rest()
        finally:
            self.quick.close()
            if hasattr(self, "stage"):
                self.stage.kill_worker()
            shutil.rmtree(self.root)

    # ---- people ----

    @precondition(lambda self: len(self.jobs) < 4)
    @rule()
    def drop(self) -> None:
        self.jobs.append(self.stage.drop())

    @rule(verb=st.sampled_from(["pause", "resume", "pause", "resume"]))
    def pause_or_resume(self, verb: str) -> None:
        wish = self.stage.wish(verb)
        self.asked[wish] = verb
        self.last_word = (wish, verb)

    @rule(rounds=st.integers(0, 1))
    def pause_and_think_better_of_it(self, rounds: int) -> None:
        self.pause_or_resume("pause")
        self.look(rounds)
        self.pause_or_resume("resume")

    @rule(now=st.booleans())
    def stop(self, now: bool) -> None:
        self.asked[self.stage.wish("stop", now=now)] = "stop"

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), keep=st.booleans(), twice=st.booleans())
    def skip(self, data: st.DataObject, keep: bool, twice: bool) -> None:
        running = self.stage.processing()
        job = data.draw(st.sampled_from([running] * 4 + self.jobs if running else self.jobs))
        self.skipped.add(job)
        for _ in range(1 + twice):
            self.asked[self.stage.wish("skip", job, keep=keep)] = "skip"

    @rule(mode=st.sampled_from(["human", "human", "auto"]))
    def later_files_are_judged_by(self, mode: str) -> None:
        self.stage.gate(mode)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), verb=st.sampled_from(["approve", "reject"]), twice=st.booleans())
    def decide(self, data: st.DataObject, verb: str, twice: bool) -> None:
        running = self.stage.processing()
        job = data.draw(st.sampled_from([running] * 4 + self.jobs if running else self.jobs))
        self.decided[verb].add(job)
        for _ in range(1 + twice):
            self.asked[self.stage.wish(verb, job)] = verb

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), verb=st.sampled_from(["retry", "retry", "set_priority", "remove"]))
    def queue(self, data: st.DataObject, verb: str) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        options = {"priority": data.draw(st.sampled_from(["high", "normal", "low", "odd"]))}
        self.asked[self.stage.wish(verb, job, **(options if verb == "set_priority" else {}))] = verb

    @precondition(lambda self: self.jobs)
    @rule(verb=st.sampled_from(["pause", "skip", "remove", "stop", "approve"]))
    def expired(self, verb: str) -> None:
        """A wish that nobody took up in its time changes nothing."""
        before = self.stage.workspace.desired.read_bytes() if self.stage.workspace.desired.exists() else b""
        self.asked[self.stage.wish(verb, self.jobs[0] if verb in ("skip", "remove", "approve") else None, -1)] = (
            f"expired {verb}"
        )
        assert before == (self.stage.workspace.desired.read_bytes() if before else b"")

    # ---- daemon and worker ----

    @rule(rounds=st.integers(1, 3))
    def look(self, rounds: int) -> None:
        for _ in range(rounds):
            self._look()

    def _look(self) -> None:
        if self.stage.daemon is None:
            return
        attempts = self.stage.attempts()
        self.stage.look()
        if self.paused():
            assert self.stage.attempts() == attempts, "nothing is started while paused"

    @rule(updates=st.integers(1, UPDATES))
    def advance(self, updates: int) -> None:
        for _ in range(updates):
            self.stage.advance()

    @rule()
    def save(self) -> None:
        if self.stage.worker:
            self.stage.worker.save()

    @rule(noted=st.booleans())
    def worker_dies(self, noted: bool) -> None:
        self.stage.kill_worker(noted=noted)

    @rule(steps=st.sampled_from([(), ("obey wishes",), ("obey wishes", "take in", "settle what ended")]))
    def daemon_restarts(self, steps: tuple[str, ...]) -> None:
        """It is killed after some steps of a round, and another comes."""
        if steps:
            self.stage.look(*steps)
        self.stage.start()

    @rule()
    def reboot(self) -> None:
        self.stage.kill_worker(noted=False)
        self.stage.start()

    @rule(loss=st.sampled_from([1.0, 1.0, 0.5, 9.0]))
    def later_trainings_are(self, loss: float) -> None:
        self.stage.runner.loss = loss
        if self.stage.worker:
            self.stage.worker.loss = loss

    # ---- what always holds ----

    def paused(self) -> bool:
        desired = Desired.load(self.stage.workspace.desired)
        return bool(desired and desired.paused)

    @invariant()
    def every_job_lies_in_one_state_and_the_model_contains_what_it_says(self) -> None:
        if not hasattr(self, "stage"):
            return
        accepted = ledger.accepted(self.stage.workspace)
        for job in self.jobs:
            state, rows = self.stage.state(job), self.stage.in_model(job)
            if state is None:
                assert self.removed_by_wish(job) and not rows
            if state is State.COMPLETED:
                assert len(rows) == UPDATES
            if state is State.SKIPPED:
                assert job in self.skipped, "a skip has hit another job"
            if state in ENDED_STATES:
                assert (job in accepted) == bool(rows)

    @invariant()
    def a_person_has_said_what_his_verdict_says_and_nobody_else_decides_for_him(self) -> None:
        for job in self.jobs:
            run = self.stage.workspace.run(job)
            verdict = Verdict.load(run.verdict)
            if (
                verdict
                and verdict.mode == "human"
                and job not in self.decided["approve" if verdict.passed else "reject"]
            ):
                raise AssertionError(f"nobody has asked for this: {verdict.reason}")
            asks = run.config.exists() and "mode: human" in run.config.read_text()
            if asks and self.stage.state(job) is State.COMPLETED:
                assert verdict and verdict.mode == "human"

    def removed_by_wish(self, job: str) -> bool:
        return bool(list(self.stage.workspace.trash.glob(f"*-{job}/{job}")))

    @invariant()
    def the_last_word_holds(self) -> None:
        """A pause lasts until a resume, over deaths and restarts, and does not come back after it."""
        if self.last_word and self.stage.answer(self.last_word[0]) and self.stage.daemon:
            assert self.paused() == (self.last_word[1] == "pause")

    @invariant()
    def an_answer_is_given_once(self) -> None:
        for wish in self.asked:
            path = self.stage.workspace.wishes / f"{wish}.answer.json"
            if path.exists():
                assert self.said.setdefault(wish, path.read_text()) == path.read_text()
                expired = self.asked[wish].removeprefix("expired ")
                if self.asked[wish] != expired and expired not in self.asked.values():
                    assert '"done": false' in path.read_text(), "nobody else has asked for it"

    # ---- the end ----

    def come_to_rest(self) -> None:
        """With a resume and enough time every wish is answered and every file has ended."""
        self.stage.runner.loss = 0.1
        if self.stage.worker:
            self.stage.worker.loss = 0.1
        self.asked[self.stage.wish("resume")] = "resume"
        for _ in range(ENOUGH_ROUNDS):
            if self.stage.daemon is None:
                self.stage.start()
            self._look()
            self.stage.advance()
            self.approve_what_waits()
            if not self.stage.waiting() and self.stage.processing() is None and not self.unanswered():
                break
        assert self.unanswered() == []
        assert not self.stage.waiting() and self.stage.processing() is None
        self.every_job_lies_in_one_state_and_the_model_contains_what_it_says()
        self.an_answer_is_given_once()

    def approve_what_waits(self) -> None:
        job = self.stage.processing()
        if job and self.stage.question(job) and "approve" not in (words.split()[0] for words in self.unanswered()):
            self.decided["approve"].add(job)
            self.asked[self.stage.wish("approve", job)] = "approve"

    def unanswered(self) -> list[str]:
        return [f"{verb} {wish}" for wish, verb in self.asked.items() if self.stage.answer(wish) is None]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


TestControl = Control.TestCase
TestControl.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # add Phase.shrink to look into a failure: it takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("keep", [True, False])
def test_a_worker_that_ends_between_two_looks_of_a_round_is_not_followed_by_another(keep: bool, tmp_path: Path) -> None:
    with without_waiting():
        stage = Stage(tmp_path / "w")
        job = stage.drop()
        stage.until_it_trains()
        stage.advance()
        wish = stage.wish("skip", job, keep=keep)
        stage.look("obey wishes", "take in", "settle what ended")
        stage.advance()
        stage.look("start next")
        assert stage.attempts() == 1
        assert stage.settle(wish).done and stage.attempts() == 1
