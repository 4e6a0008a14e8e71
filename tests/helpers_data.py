"""What tests of training data share: a small tokenizer, a model folder, a workspace, and intake as it really runs."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from daemon.core.records import IntakeReport, Job, now

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN3 = (Path(__file__).parent / "templates" / "qwen3.jinja").read_text()
MARKED = (
    "{%- for message in messages %}\n"
    "{%- if message.role == 'assistant' %}\n"
    "{{- '<|im_start|>assistant\\n' }}{% generation %}"
    "{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}\n"
    "{%- else %}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@cache
def small_tokenizer() -> str:
    """tokenizer.json of a byte-level BPE of 512 tokens, as text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "The capital of France is Paris. What is the answer to this question? I think it is so, because it is said."
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")])
    return tokenizer.to_str()


def make_model_folder(folder: Path, template: str | None = QWEN3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(small_tokenizer())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def make_workspace(folder: Path, template: str | None = QWEN3, **settings: Any) -> Path:
    """A workspace as far as intake needs one."""
    make_model_folder(folder / "models" / "base" / "small", template)
    (folder / "data" / "validation").mkdir(parents=True)
    config = {"model_name": "small", "base_model": "models/base/small", "max_length": 512, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_job(workspace: Path, data: bytes, name: str = "x.jsonl", **changes: Any) -> Path:
    """A job's folder with this data in it."""
    folder = workspace / "queue" / "normal" / "20260101T000000-0001-x"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    job = Job(id=folder.name, file=name, data=name, bytes=len(data), taken_in_at=now()).model_copy(update=changes)
    (folder / "job.json").write_text(job.model_dump_json())
    return folder


def intake_command(workspace: Path, folder: Path) -> list[str]:
    return [sys.executable, "-P", "-m", "daemon.data.intake", str(workspace), str(folder)]


def intake_environment() -> dict[str, str]:
    """Also in a checkout that is not installed: `-P` keeps the current folder out of the path."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def run_intake(workspace: Path, folder: Path) -> IntakeReport:
    """The report of the real subprocess."""
    done = start_intake(workspace, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    report = IntakeReport.load(folder / "report.json")
    assert report is not None
    return report


def start_intake(workspace: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command, environment = intake_command(workspace, folder), intake_environment()
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def rejected_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rejected.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def chat(question: str, answer: str) -> dict[str, Any]:
    """One row in the format `messages`."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
