"""How fast intake reads a file, beside what `datasets` and transformers do for the same tokens and masks.

    python benchmarks/intake.py [--rows 100000] [--long-rows 2000] [--runs 5] [--processes N]
    python benchmarks/intake.py --big [--bytes 2000000000]

The first needs the extra `benchmarks`. Each run is a fresh process with cold caches; the two take turns, so that
whatever else the machine does hits both. Rows, tokenizer, template, number of processes and priority are the same. Ours
does more than is compared: it checks every row, looks for duplicates, hashes and syncs the cache.

The second drops one large file into a running daemon and prints the memory of every process of intake, and how long the
daemon took to answer a wish meanwhile. It needs no extra.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS_BYTES = 4 << 20
VOCABULARY = 16_000


# ---- what is read ----


def corpus() -> str:
    """Text that every machine has: the standard library's sources."""
    text = ""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_text(errors="ignore")
        if len(text) > CORPUS_BYTES:
            break
    return text


def make_model(folder: Path, text: str) -> Path:
    """A byte-level BPE of the usual kind, and a template with marks, which `datasets` and transformers need."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def chats(words: list[str], rounds: int, length: int) -> Iterator[bytes]:
    """Endless chats of so many rounds, about `length` words a turn."""
    draw = random.Random(0)
    for number in cycle(range(1 << 62)):
        messages = []
        for _ in range(rounds):
            size = draw.randint(length // 2, length * 3 // 2)
            start = draw.randrange(len(words) - 2 * size)
            question, answer = words[start : start + size], words[start + size : start + 2 * size]
            messages.append({"role": "user", "content": f"{number} " + " ".join(question)})
            messages.append({"role": "assistant", "content": " ".join(answer)})
        yield json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"


def write_rows(path: Path, words: list[str], rows: int, rounds: int, length: int) -> Path:
    with path.open("wb") as file:
        for _, row in zip(range(rows), chats(words, rounds, length), strict=False):
            file.write(row)
    return path


def make_workspace(folder: Path, model: Path) -> Path:
    (folder / "data/validation").mkdir(parents=True)
    shutil.copytree(model, folder / "models/base/bench")
    config = {"model_name": "bench", "base_model": "models/base/bench", "max_length": 1_000_000}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ---- the two that are compared ----


def run_ours(work: Path, data: Path, model: Path, processes: int) -> float:
    """Seconds, from start to end of the process that the daemon starts."""
    from daemon.core.records import IntakeReport, Job, now

    workspace = make_workspace(work / "workspace", model)
    folder = workspace / "queue/normal/20260101T000000-0001-x"
    folder.mkdir(parents=True)
    os.link(data, folder / "x.jsonl")
    job = Job(id=folder.name, file="x.jsonl", data="x.jsonl", bytes=data.stat().st_size, taken_in_at=now())
    job.save(folder / "job.json")
    command = [sys.executable, "-P", "-m", "daemon.data.intake", str(workspace), str(folder)]
    seconds = timed(command, work, processes)
    report = IntakeReport.load(folder / "report.json")
    assert report is not None and report.usable and not report.bad_rows, report
    return seconds


def run_theirs(work: Path, data: Path, model: Path, processes: int) -> float:
    from daemon.data.intake import NICENESS

    command = [sys.executable, __file__, "--baseline", str(data), str(model), str(processes)]
    # Intake gives way to other programs by itself.
    return timed(["nice", "-n", str(NICENESS), *command], work, processes)


def cores(count: int) -> str:
    return ",".join(map(str, sorted(os.sched_getaffinity(0))[:count]))


def timed(command: list[str], work: Path, processes: int) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    pinned = ["taskset", "-c", cores(processes), *command]
    done = subprocess.run(pinned, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return time.monotonic() - began


def baseline(data: str, model: str, processes: int) -> None:
    """What people write today for assistant-only loss."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = load_dataset("json", data_files=data, split="train")
    tokens = rows.map(
        lambda batch: tokenizer.apply_chat_template(
            batch["messages"], return_assistant_tokens_mask=True, return_dict=True
        ),
        batched=True,
        num_proc=processes,
        remove_columns=rows.column_names,
    )
    assert len(tokens) == len(rows) and any(tokens[0]["assistant_masks"])


def compare(name: str, data: Path, rows: int, model: Path, runs: int, processes: int) -> None:
    megabytes = data.stat().st_size / 1e6
    seconds: dict[str, list[float]] = {"intake": [], "datasets": []}
    print(f"{name}: {rows:,} rows, {megabytes:.0f} MB, {processes} processes", flush=True)
    for run in range(runs):
        for who, measure in (("intake", run_ours), ("datasets", run_theirs)):
            with tempfile.TemporaryDirectory(dir=data.parent) as work:
                seconds[who].append(measure(Path(work), data, model, processes))
            print(f"  run {run + 1}  {who:<9} {seconds[who][-1]:7.1f} s", flush=True)
    for who, times in seconds.items():
        print(f"  median {who:<9} {rows / median(times):10,.0f} rows/s {megabytes / median(times):7.2f} MB/s")
    print(f"  intake is {median(seconds['datasets']) / median(seconds['intake']):.2f} times as fast", flush=True)


# ---- a large file and a running daemon ----


def big(folder: Path, size: int) -> None:
    from benchmarks.watched import watch_intake

    words = corpus().split()
    data = folder / "big.jsonl"
    written = 0
    with data.open("wb") as file:
        for row in chats(words, 2, 60):
            written += file.write(row)
            if written >= size:
                break
    print(f"{written / 1e9:.2f} GB written", flush=True)
    watch_intake(folder / "workspace", data)


def main() -> None:
    if sys.argv[1:2] == ["--baseline"]:
        baseline(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="short chats")
    parser.add_argument("--long-rows", type=int, default=2_000, help="long chats")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=min(4, len(os.sched_getaffinity(0))))
    parser.add_argument("--big", action="store_true", help="one large file through a running daemon")
    parser.add_argument("--bytes", type=int, default=2_000_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="intake-benchmark-") as folder:
        if given.big:
            big(Path(folder), given.bytes)
            return
        text = corpus()
        model, words = make_model(Path(folder) / "model", text), text.split()
        for name, rows, rounds, length in (("short", given.rows, 1, 30), ("long", given.long_rows, 20, 120)):
            data = write_rows(Path(folder) / f"{name}.jsonl", words, rows, rounds, length)
            compare(name, data, rows, model, given.runs, given.processes)


if __name__ == "__main__":
    main()
