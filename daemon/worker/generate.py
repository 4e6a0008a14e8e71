"""Generation that ends in time: a monotonic deadline looked at after every token."""

import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from daemon.core.heartbeat import Heartbeat, Phase

EXTRA_TOKENS = 64  # beyond twice the longest golden answer, so that a wrong answer is still recognisable


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
    """What the model said: token ids a prompt, without prompt and padding; None where the deadline passed first."""

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
) -> Answers:
    """Greedy answers to all prompts in one batch under one deadline. The caller has put the model into eval mode."""
    longest = max(len(p) for p in prompts)
    input_ids = torch.tensor([[pad_id] * (longest - len(p)) + p for p in prompts], device=model.device)
    attention_mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    deadline = Deadline(timeout_seconds, heartbeat)
    with torch.inference_mode():
        output: torch.Tensor = model.generate(  # type: ignore[operator]  # a mixin that torch's annotations hide
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
    said = [_until_end(row, eos_ids) for row in output[:, longest:].tolist()]
    ended = [len(tokens) < output.shape[1] - longest or (tokens[-1:] and tokens[-1] in eos_ids) for tokens in said]
    finished = [tokens if done or not deadline.passed else None for tokens, done in zip(said, ended, strict=True)]
    return Answers(finished, deadline.passed and None in finished)


def _until_end(tokens: list[int], eos_ids: list[int]) -> list[int]:
    ends = [place for place, token in enumerate(tokens) if token in eos_ids]
    return tokens[: ends[0] + 1] if ends else tokens
