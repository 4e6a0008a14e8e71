"""Generation ends in time and leaves no trace in training."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from daemon.core.config import Settings
from daemon.core.heartbeat import Heartbeat, Phase, read
from daemon.worker.batches import TokenRows
from daemon.worker.evaluate import Holdout, aside, rng_states, split
from daemon.worker.generate import answer
from daemon.worker.losses import TokenLosses

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
    model: PreTrainedModel, heartbeat: Heartbeat
) -> None:
    slow_down(model, 0.1)
    started = time.monotonic()
    answers = ask(model, heartbeat, 0.3)
    assert answers.timed_out and answers.tokens == [None, None]
    assert time.monotonic() - started < 1.5


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
