"""Generation ends in time and leaves no trace in training."""

import gc
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from daemon.core.config import Settings
from daemon.core.heartbeat import Heartbeat, Phase, last_phase, read
from daemon.jobs.recovery import GAVE_UP
from daemon.worker.batches import TokenRows
from daemon.worker.evaluate import Holdout, aside, rng_states, split
from daemon.worker.generate import answer
from daemon.worker.losses import TokenLosses

ROOT = Path(__file__).parent.parent.parent
SETTINGS = Settings(model_name="m", base_model="b", eval_examples=3, max_new_tokens=8, per_device_train_batch_size=4)


@pytest.fixture
def heartbeat(tmp_path: Path) -> Heartbeat:
    return Heartbeat(tmp_path / "heartbeat")


def ask(model: PreTrainedModel, heartbeat: Heartbeat, seconds: float) -> Any:
    return answer(
        model,
        [[10, 11], [12]],
        longest_golden=20,
        max_new_tokens=30,
        timeout_seconds=seconds,
        pad_id=0,
        eos_ids=[511],
        heartbeat=heartbeat,
    )


def slow_down(model: PreTrainedModel, seconds: float) -> None:
    model.register_forward_pre_hook(lambda *_: time.sleep(seconds))


def test_within_the_deadline_every_prompt_is_answered(model: PreTrainedModel, heartbeat: Heartbeat) -> None:
    answers = ask(model, heartbeat, 60)
    assert not answers.timed_out
    assert [len(said) for said in answers.tokens] == [30, 30]


def test_a_slow_model_is_stopped_at_the_next_token_and_its_answers_are_null(
    model: PreTrainedModel, heartbeat: Heartbeat, tmp_path: Path
) -> None:
    slow_down(model, 0.1)
    answers = ask(model, heartbeat, 0.3)
    assert answers.timed_out and answers.tokens == [None, None]
    assert 0 < tokens_generated(tmp_path) < 2 * 10  # of 30 each


def tokens_generated(folder: Path) -> int:
    beat = read(folder / "heartbeat")
    assert beat
    return beat.tokens


def hang(*_: Any) -> None:
    while True:
        time.sleep(1)


def hang_and_swallow(*_: Any) -> None:
    """As a library that catches everything would."""
    for _ in range(2):
        try:
            hang()
        except BaseException:
            continue
    hang()


@pytest.mark.parametrize("forward", [hang, hang_and_swallow])
def test_a_forward_that_hangs_in_python_is_interrupted_also_where_the_first_alarm_is_swallowed(
    model: PreTrainedModel, heartbeat: Heartbeat, forward: Any
) -> None:
    before = signal.getsignal(signal.SIGALRM)
    model.register_forward_pre_hook(forward)
    answers = ask(model, heartbeat, 0.2)
    assert answers.timed_out and answers.tokens == [None, None]
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_no_alarm_rings_after_generation(model: PreTrainedModel, heartbeat: Heartbeat) -> None:
    ask(model, heartbeat, 0.5)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    time.sleep(1.0)  # it would have rung by now, and ended this process


IN_C = """
import ctypes, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from daemon.core.heartbeat import Heartbeat
from daemon.worker import generate
generate.END_SECONDS = 0.5
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
mutex = ctypes.create_string_buffer(64)
lock = ctypes.PyDLL(None).pthread_mutex_lock
model.register_forward_pre_hook(lambda *_: [lock(mutex), lock(mutex)] and None)
folder = Path(sys.argv[2])
generate.answer(model, [[10]], longest_golden=3, max_new_tokens=3, timeout_seconds=0.5, pad_id=0, eos_ids=[511],
                heartbeat=Heartbeat(folder / "heartbeat"), stacks=folder / "stacks.txt")
"""


def test_a_forward_that_hangs_in_c_ends_the_process_and_says_where(model_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_C, str(model_folder), str(tmp_path)],
        timeout=300,
        check=False,
        cwd=ROOT,
        capture_output=True,
    )
    assert done.returncode == GAVE_UP, done.stderr
    stacks = (tmp_path / "stacks.txt").read_text()
    assert "Timeout" in stacks and "generate" in stacks
    assert last_phase(tmp_path / "heartbeat") is Phase.LOAD  # no token came; whoever generates says so before


def test_what_fails_in_generation_is_said_and_nothing_else_happens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_rows: TokenRows, heartbeat: Heartbeat
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no position left")

    model.register_forward_pre_hook(fail)
    examples, failure = Holdout(token_rows, SETTINGS, tokenizer, heartbeat, TokenLosses()).examples(model)
    assert failure == "ValueError: no position left"
    assert [e["model_output"] for e in examples] == [None] * 3 and examples[0]["golden_answer"]


def test_answers_that_differ_where_the_shown_text_is_cut_do_not_match(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_rows: TokenRows, heartbeat: Heartbeat
) -> None:
    long, other = [5] * 600, [5] * 300 + [6] + [5] * 299
    holdout = Holdout(token_rows, SETTINGS, tokenizer, heartbeat, TokenLosses())
    shown = holdout._show([7], long, other)
    assert shown["golden_answer"] == shown["model_output"] and "…" in shown["model_output"]
    assert shown["match"] is False and holdout._show([7], long, long)["match"] is True


def caches() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Cache) for thing in gc.get_objects())


def test_after_many_evaluations_no_cache_is_left_and_memory_is_flat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_rows: TokenRows, heartbeat: Heartbeat
) -> None:
    settings = SETTINGS.model_copy(update={"generation_timeout_seconds": 1.0})
    holdout = Holdout(token_rows, settings, tokenizer, heartbeat, TokenLosses())
    before, resident = caches(), []
    for evaluation in range(20):
        handle = model.register_forward_pre_hook(hang) if evaluation == 7 else None
        _, failure = holdout.examples(model)
        assert (failure is not None) == (evaluation == 7)
        if handle:
            handle.remove()
        holdout.loss(model, 10)
        resident.append(psutil.Process().memory_info().rss)
    assert caches() == before
    assert resident[-1] - resident[4] < 20e6


def test_each_token_beats_the_heart(model: PreTrainedModel, heartbeat: Heartbeat, tmp_path: Path) -> None:
    ask(model, heartbeat, 60)
    beat = read(tmp_path / "heartbeat")
    assert beat and beat.phase is Phase.GENERATE and beat.tokens == 60


def test_evaluation_leaves_generators_mode_and_cache_flag_as_they_were(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_rows: TokenRows, heartbeat: Heartbeat
) -> None:
    model.train()
    model.config.use_cache = False
    before = rng_states()
    holdout = Holdout(token_rows, SETTINGS, tokenizer, heartbeat, TokenLosses())
    with aside(model, heartbeat, Phase.EVALUATE):
        torch.rand(3)
    assert holdout.loss(model, 10) == holdout.loss(model, 10)
    holdout.examples(model)
    assert torch.equal(before["torch"], torch.get_rng_state())
    assert model.training and model.config.use_cache is False


def test_the_holdout_loss_does_not_depend_on_the_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_rows: TokenRows, heartbeat: Heartbeat
) -> None:
    one = SETTINGS.model_copy(update={"per_device_train_batch_size": 1})
    losses = [Holdout(token_rows, s, tokenizer, heartbeat, TokenLosses()).loss(model, 23) for s in (SETTINGS, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_example_asks_the_prompt_and_expects_the_last_answer(token_rows: TokenRows) -> None:
    assert split(*token_rows.row(2)) == ([12, 12, 12], [5, 6, 7])
