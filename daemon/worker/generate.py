"""Generation that ends in time: by a deadline at every token, by an alarm, and at last by the end of the process."""

import faulthandler
import gc
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from daemon.core.heartbeat import Heartbeat, Phase

EXTRA_TOKENS = 64  # beyond twice the longest golden answer, so that a wrong answer is still recognisable
ALARM_TIMES = 1.25  # of the time given: nothing has looked at the deadline since
END_TIMES, END_SECONDS = 1.5, 5.0  # of it, and more: not even the alarm came through
AGAIN_SECONDS = 1.0  # between two alarms: a library may have swallowed the first


class TooLong(BaseException):
    """The alarm. No Exception, so that libraries which catch those let it pass."""


class Deadline(StoppingCriteria):
    """Stops every sequence once the deadline has passed; beats the heart at each token."""

    def __init__(self, seconds: float, heartbeat: Heartbeat) -> None:
        # time.monotonic: transformers' own max_time follows the wall clock, which may jump.
        self._until = time.monotonic() + seconds
        self._heartbeat = heartbeat
        self.passed = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self._heartbeat.beat(Phase.GENERATE, tokens=len(input_ids))
        self.passed = self.passed or time.monotonic() > self._until
        return torch.full((len(input_ids),), self.passed, dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class Answers:
    """What the model said: token ids a prompt, without prompt and padding; None where there is no whole answer."""

    tokens: list[list[int] | None]
    timed_out: bool


def answer(
    model: PreTrainedModel,
    prompts: list[list[int]],
    *,
    longest_golden: int,
    max_new_tokens: int,
    timeout_seconds: float,
    pad_id: int,
    eos_ids: list[int],
    heartbeat: Heartbeat,
    stacks: Path | None = None,
) -> Answers:
    """Greedy answers to all prompts in one batch under one deadline. The caller has put the model into eval mode.

    Of a process that hangs where no alarm comes through, `stacks` tells where; it exits with the code 1.
    """
    longest = max(len(p) for p in prompts)
    input_ids = torch.tensor([[pad_id] * (longest - len(p)) + p for p in prompts], device=model.device)
    attention_mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    deadline = Deadline(timeout_seconds, heartbeat)
    output: torch.Tensor | None = None
    try:
        with _alarm(timeout_seconds, stacks), torch.inference_mode():
            output = model.generate(  # type: ignore[operator]  # a mixin that torch's annotations hide
                input_ids=input_ids,
                attention_mask=attention_mask,
                do_sample=False,
                num_beams=1,
                max_new_tokens=min(max_new_tokens, 2 * longest_golden + EXTRA_TOKENS),
                use_cache=True,
                pad_token_id=pad_id,
                eos_token_id=eos_ids,
                stopping_criteria=StoppingCriteriaList([deadline]),
            )
    except TooLong as alarm:
        _silence(signal.SIG_DFL)  # it may have rung while the alarm was put away
        traceback.clear_frames(alarm.__traceback__)  # they hold the cache of keys and values
        output = None
    if output is None:
        gc.collect()
        return Answers([None] * len(prompts), True)
    said = [_until_end(row, eos_ids) for row in output[:, longest:].tolist()]
    ended = [len(tokens) < output.shape[1] - longest or (tokens[-1:] and tokens[-1] in eos_ids) for tokens in said]
    finished = [tokens if done or not deadline.passed else None for tokens, done in zip(said, ended, strict=True)]
    return Answers(finished, deadline.passed and None in finished)


@contextmanager
def _alarm(seconds: float, stacks: Path | None) -> Iterator[None]:
    """Raise TooLong inside the block when it takes too long; where Python does not come to it, end the process."""

    def ring(*_: Any) -> None:
        raise TooLong

    with stacks.open("ab") if stacks else nullcontext() as file:
        before = signal.signal(signal.SIGALRM, ring)
        if file is not None:
            faulthandler.dump_traceback_later(END_TIMES * seconds + END_SECONDS, file=file, exit=True)
        signal.setitimer(signal.ITIMER_REAL, ALARM_TIMES * seconds, AGAIN_SECONDS)
        try:
            yield
        finally:
            _silence(before)


def _silence(handler: Any) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
    faulthandler.cancel_dump_traceback_later()


def _until_end(tokens: list[int], eos_ids: list[int]) -> list[int]:
    ends = [place for place, token in enumerate(tokens) if token in eos_ids]
    return tokens[: ends[0] + 1] if ends else tokens
