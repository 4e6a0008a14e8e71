"""The embedded model: small, the same each time, complete, and able to learn the capitals."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from daemon.cli import demo_data
from daemon.core import files

CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me, naïve 東京."}]


def make(folder: Path) -> Path:
    folder.mkdir()
    subprocess.run([sys.executable, "-P", "-m", "daemon.worker.embedded", str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("embedded") / "model")


def test_the_model_is_the_same_bytes_each_time(model: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "again")
    assert {f.name: files.hash_file(f) for f in model.iterdir()} == {
        f.name: files.hash_file(f) for f in again.iterdir()
    }


def test_it_is_a_small_qwen3_in_float32(model: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model)
    assert type(loaded).__name__ == "Qwen3ForCausalLM"
    assert 300_000 < loaded.num_parameters() < 600_000
    assert str(loaded.dtype) == "torch.float32"


def test_each_turn_mark_is_one_token_and_any_text_comes_back(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert [len(tokenizer(mark)["input_ids"]) for mark in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")] == [1, 1, 1]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.decode(tokenizer(CHAT[1]["content"])["input_ids"]) == CHAT[1]["content"]


def test_the_template_marks_the_assistants_text_and_the_end_of_its_turn(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    row = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    own = [token for token, mask in zip(row["input_ids"], row["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(own) == "Me, naïve 東京.<|im_end|>"
    assert tokenizer.apply_chat_template(CHAT, tokenize=False).endswith("<|im_end|>\n")


def questions(rows: list[demo_data.Row]) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


TRAINED = questions([*demo_data.main_rows(), *demo_data.urgent_rows(), *demo_data.later_rows()])


def test_half_of_the_golden_questions_and_the_whole_holdout_are_in_no_training_row() -> None:
    golden = questions(demo_data.golden_rows())
    assert [question in questions(demo_data.main_rows()) for question in golden] == [True] * 4 + [False] * 4
    assert not set(golden[4:]) & set(TRAINED)
    assert not set(questions(demo_data.holdout_rows())) & {*TRAINED, *golden}


def test_the_spoiled_file_has_two_bad_lines_and_stays_below_the_limit() -> None:
    lines = demo_data.files()[f"samples/{demo_data.LATER_FILE}"].splitlines()
    assert len(lines) == len(demo_data.later_rows()) + 2
    assert 2 / len(lines) < 0.05
