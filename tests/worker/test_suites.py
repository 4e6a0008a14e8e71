"""What suites say of a model: row by row the right figure, in bounded time, and no fault of theirs ends a training."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from daemon.core import files
from daemon.core.attempts import Assignment, Control, Measured, SuiteGiven
from daemon.core.config import Settings
from daemon.core.heartbeat import Heartbeat
from daemon.core.paths import Workspace
from daemon.data.suites import META, SuiteMeta
from daemon.data.tokens import TokensWriter, packed
from daemon.worker.batches import pad
from daemon.worker.callbacks import Orders
from daemon.worker.losses import TokenLosses
from daemon.worker.suites import Suites

PROMPTS = [[10 + n] * (9 - n) + [3] for n in range(7)]  # the longest first: batches go by length
GOLDEN = json.loads((Path(__file__).parent.parent / "golden/Assignment.json").read_text())
SETTINGS = {"model_name": "m", "base_model": "base", "per_device_train_batch_size": 3, "max_new_tokens": 4}


class Bench:
    """A workspace with a model and suites of given answers; what was said is kept."""

    def __init__(self, root: Path, model_folder: Path) -> None:
        self.workspace, self.said = Workspace(root), list[str]()
        (root / "base").symlink_to(model_folder)
        self.attempt = self.workspace.run("job").attempt(1)
        self.attempt.root.mkdir(parents=True)
        self.orders = Orders(self.attempt)
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self.given: list[SuiteGiven] = []

    def add(self, name: str, answers: list[list[int]], prompts: list[list[int]] = PROMPTS) -> None:
        folder = self.workspace.root / name
        with files.stage(folder) as staged, TokensWriter(staged) as writer:
            for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=False)):
                mask = bytes(len(prompt)) + b"\1" * len(answer)
                writer.append(packed([*prompt, *answer]), mask, n + 1, n.to_bytes(16, "big"))
            rows = writer.finish(name, name, 0).rows
            SuiteMeta(file=f"{name}.jsonl", rows=rows, left_out_rows=0, reason=None).save(staged / META)
        self.given.append(SuiteGiven(name=name, key=name, folder=name))

    def open(self, **settings: Any) -> Suites:
        facts = {"job": "job", "workspace": str(self.workspace.root), "base_model": "base"}
        assignment = Assignment.model_validate(GOLDEN | facts | {"suites": self.given})
        heartbeat = Heartbeat(self.workspace.root / "heartbeat")
        return Suites(assignment, Settings(**SETTINGS | settings), self.tokenizer, heartbeat, TokenLosses())

    def measure(self, model: PreTrainedModel, **settings: Any) -> Measured:
        return self.open(**settings).measure(model, "checkpoint-1", self.orders, self.said.append)


@pytest.fixture
def bench(tmp_path: Path, model_folder: Path) -> Bench:
    return Bench(tmp_path, model_folder)


def said_by(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """What the model answers by plain transformers."""
    with torch.inference_mode():
        whole: Any = model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    return [int(token) for token in whole[0, len(prompt) :]]


def changed(model: PreTrainedModel) -> PreTrainedModel:
    """Another model than the base."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    return model


def test_every_answer_is_held_against_its_own_row(bench: Bench, model: PreTrainedModel) -> None:
    """Right answers for rows 1, 2 and 5; the others have the right answer of their neighbour."""
    right = [said_by(model, prompt) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in right}) > 3, "the model says different things"
    wrong = [[a if a != b else [9, 9, 9, 9]][0] for a, b in zip(right[1:] + right[:1], right, strict=True)]
    bench.add("s", [right[n] if n in (1, 2, 5) else wrong[n] for n in range(7)])
    assert bench.measure(model).suites["s"].exact_match == pytest.approx(3 / 7)


def test_the_loss_is_the_mean_over_all_expected_tokens(bench: Bench, model: PreTrainedModel) -> None:
    bench.add("s", [[20 + n] * (1 + n % 3) for n in range(7)])
    figures = bench.measure(model).suites["s"]
    suite = bench.open()._suites[0]
    assert suite.rows
    losses = [TokenLosses()(model, pad(suite.rows, [n], 0)).detach() for n in range(7)]
    assert figures.loss == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert figures.perplexity == pytest.approx(math.exp(figures.loss or 0))


def test_texts_are_read_and_not_asked_about(bench: Bench, model: PreTrainedModel) -> None:
    bench.add("s", PROMPTS, prompts=[[]] * 7)
    figures = bench.measure(model).suites["s"]
    assert (figures.questions, figures.exact_match, figures.reason) == (0, None, None) and figures.perplexity


def test_what_does_not_fit_is_none_with_the_reason_and_the_short_suites_come_first(
    bench: Bench, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.add("long", [[5] * 60 for _ in range(600)], prompts=[[7] * 60] * 600)
    bench.add("short", [[5]])
    monkeypatch.setattr("daemon.worker.suites.LEAST_SECONDS", 6.0)
    model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    measured = bench.measure(model)
    long = measured.suites["long"]
    assert measured.suites["short"].exact_match == 0.0 and measured.base["short"].reason is None
    assert (long.loss, long.perplexity, long.exact_match) == (None, None, None)
    assert (long.reason or "").startswith("no time: 3.0 s") and measured.seconds < 15
    assert "trained model" in (measured.base["long"].reason or "")


def test_an_order_ends_the_measuring(bench: Bench, model: PreTrainedModel) -> None:
    bench.add("s", [[5]])
    Control(action="pause", reason="user").save(bench.attempt.control)
    assert bench.measure(model).suites["s"].reason == "pause was asked for: user"


def test_an_answer_that_takes_too_long_makes_no_share_of_right_ones(bench: Bench, model: PreTrainedModel) -> None:
    bench.add("s", [[5] * 4])
    model.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    figures = bench.measure(model, generation_timeout_seconds=0.15).suites["s"]
    assert figures.exact_match is None and figures.perplexity
    assert "generation_timeout_seconds (0.15 s)" in (figures.reason or "")


@pytest.mark.parametrize("broken", ["no cache", "half a cache", "no record"])
def test_a_suite_that_cannot_be_opened_costs_its_figures_only(
    bench: Bench, model: PreTrainedModel, broken: str
) -> None:
    bench.add("s", [[5]])
    bench.add("good", [[5]])
    {"no cache": lambda p: files.remove(p), "half a cache": lambda p: (p / "ids.bin").write_bytes(b"")}.get(
        broken, lambda p: (p / META).write_text("{")
    )(bench.workspace.root / "s")
    measured = bench.measure(model)
    assert measured.suites["s"].reason and measured.suites["s"].loss is None
    assert measured.suites["good"].reason is None


def test_an_error_in_the_model_is_the_reason(bench: Bench, model: PreTrainedModel) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    bench.add("s", [[5]])
    model.register_forward_pre_hook(fail)
    assert bench.measure(model).suites["s"].reason == "OutOfMemoryError: no memory"


def test_a_model_that_is_not_finite_has_no_figures(bench: Bench, model: PreTrainedModel) -> None:
    bench.add("s", [[5]])
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    figures = bench.measure(model).suites["s"]
    assert (figures.loss, figures.reason) == (None, "the loss is not a finite number")


def as_lora(model: PreTrainedModel) -> Any:
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    return adapted


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.parametrize("trained", [changed, as_lora])
def test_the_base_model_is_measured_as_it_is_and_once(
    bench: Bench, model: PreTrainedModel, model_folder: Path, trained: Callable[[Any], Any]
) -> None:
    bench.add("s", [said_by(model, prompt) for prompt in PROMPTS])
    first = bench.measure(trained(model))
    assert first.base["s"].exact_match == 1.0 and (first.suites["s"].exact_match or 0) < 1.0
    (kept,) = files.read_lines(bench.workspace.baselines)
    assert kept["figures"] == first.base["s"].model_dump() and kept["base_model_sha256"] == GOLDEN["base_model_sha256"]
    again = bench.measure(AutoModelForCausalLM.from_pretrained(model_folder))
    assert again.base == first.base and len(files.read_lines(bench.workspace.baselines)) == 1
    assert sum("the base model" in said for said in bench.said) == 1


def test_a_baseline_without_all_its_figures_is_not_kept(bench: Bench, model: PreTrainedModel) -> None:
    bench.add("s", [[5] * 4])
    model.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    bench.measure(model, generation_timeout_seconds=0.15)
    assert not bench.workspace.baselines.exists()


def test_without_memory_for_the_base_model_it_is_not_measured(
    bench: Bench, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.add("s", [[5]])
    monkeypatch.setattr("daemon.worker.baselines.free_memory", lambda: 1_000_000)
    measured = bench.measure(model)
    assert "1 MB are free" in (measured.base["s"].reason or "") and measured.suites["s"].reason is None


def test_damaged_lines_of_baselines_are_passed_over(bench: Bench, model: PreTrainedModel) -> None:
    bench.add("s", [[5]])
    bench.workspace.baselines.write_text('{"base_model_sha256": 7}\n{half\n')
    assert bench.measure(model).base["s"].reason is None
    assert bench.measure(model).base["s"].exact_match == 0.0
    assert sum("the base model" in said for said in bench.said) == 1


def test_what_nobody_thought_of_is_said_and_ends_no_training(bench: Bench, model: PreTrainedModel) -> None:
    bench.add("s", [[5]])
    bench.workspace.baselines.mkdir()
    bench.open().leave(bench.attempt, model, "checkpoint-1", bench.orders, bench.said.append)
    assert bench.said[-1].startswith("── the suites could not be measured: IsADirectoryError")
    assert not bench.attempt.measured.exists()


def test_speeds_are_told_by_length(bench: Bench, model: PreTrainedModel) -> None:
    bench.add("s", [[5] * 2 for _ in range(7)])
    bench.add("t", [[5] * 60], prompts=[[7] * 60])
    measured = bench.measure(model)
    assert set(measured.tokens_per_second) == {8, 16, 128} and min(measured.tokens_per_second.values()) > 0
    assert measured.generated_tokens_per_second
