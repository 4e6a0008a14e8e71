"""Tokens a second of a training: ours beside TRL, Hugging Face Trainer and a loop written by hand.

    python benchmarks/throughput.py [--models small large] [--rounds 3] [--updates 40] [--threads 2]

It needs the extra `benchmarks`.
The same model, rows, rows an update and rate for all, one after the other in turn, each in a process of its own; the
median of the rounds counts. The rows have a long tail of lengths, and a fifth of their tokens is trained. The loop
written by hand packs inside an update of 16 rows and computes logits only where there is a label: the limit. Ours is
the real daemon with its worker, timed by the lines of its log; the others leave their first updates out as well.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from daemon.worker.batches import IGNORED, Stream, TokenRows, fill  # noqa: E402 - from this checkout
from tests.acceptance.bench import Bench  # noqa: E402

UPDATE_ROWS, MICRO_BATCH, LONGEST, RATE, WARM_UPDATES = 16, 8, 512, 1e-4, 10
SHARE_TRAINED = 5  # one token of so many
LEAST_SHARE = {"small": 0.85, "large": 0.9}  # of the loop written by hand
PATIENCE_SECONDS = 3600
STREAM_NAME = "benchmark"


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    hidden: int
    inner: int
    layers: int


SHAPES = {"small": Shape(1024, 128, 384, 4), "large": Shape(32_000, 192, 768, 6)}


# ---- model and rows ----


def make_model(folder: Path, shape: Shape) -> int:
    """A Qwen3 of random weights whose tokens are whole words; its number of parameters."""
    import torch
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>"]
    words = [*special, "user", "assistant", *(f"w{n}" for n in range(shape.vocabulary - len(special) - 2))]
    pieces = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    pieces.pre_tokenizer = WhitespaceSplit()
    pieces.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<|im_end|>", pad_token="<pad>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} "
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=shape.hidden // 4,
        max_position_embeddings=2 * LONGEST,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def rows(count: int, shape: Shape) -> Iterator[dict[str, Any]]:
    """Chats with a long tail of lengths, of which the last fifth is the answer."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.4, 0.9, count), 20, LONGEST - 8).astype(int)
    for length in lengths:
        words = [f"w{n}" for n in random.integers(0, shape.vocabulary - 6, length)]
        answer = max(1, length // SHARE_TRAINED - 1)
        turns = (("user", words[:-answer]), ("assistant", words[-answer:]))
        yield {"messages": [{"role": role, "content": " ".join(said)} for role, said in turns]}


# ---- ours ----


def ours(folder: Path, data: Path, packing: bool) -> tuple[float, list[float], Path]:
    """Tokens a second by the daemon's own log, the losses in it, and the run."""
    bench = Bench.make(
        folder,
        data / "model",
        training_method="full",
        max_length=LONGEST,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=UPDATE_ROWS // MICRO_BATCH,
        packing=packing,
        learning_rate=RATE,
        warmup_steps=0,
        logging_steps=WARM_UPDATES,
        save_steps=10**6,
        gate={"mode": "off"},
    )
    bench.environment["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    bench.drop("rows.jsonl", (data / "rows.jsonl").read_bytes())
    bench.start()
    try:
        (job,) = bench.wait_for("completed", seconds=PATIENCE_SECONDS)
    finally:
        bench.end()
    log = bench.log(job, "log")
    seconds = (datetime.fromisoformat(log[-1]["time"]) - datetime.fromisoformat(log[0]["time"])).total_seconds()
    assignment = json.loads((bench.root / f"runs/{job}/attempts/1/assignment.json").read_text())
    stream = Stream(assignment["rows"], 1, UPDATE_ROWS, 42, f"{assignment['data_sha256']} at 0")
    lengths = np.diff(np.asarray(TokenRows(data / "tokens").offsets))
    counted = [int(lengths[row]) for step in range(WARM_UPDATES, stream.total_steps) for _, row in stream.update(step)]
    return sum(counted) / seconds, [line["loss"] for line in log], bench.root


def keep_tokens(folder: Path, data: Path) -> None:
    """What intake makes of the rows, for the others: the job waits behind a pause while it is copied."""
    import shutil

    bench = Bench.make(folder, data / "model", max_length=LONGEST).start()
    try:
        bench.command("training_controller", "pause").check_returncode()
        bench.drop("rows.jsonl", (data / "rows.jsonl").read_bytes())
        report = bench.wait(lambda: next(folder.glob("queue/normal/*/report.json"), None), 600, "the file is read")
        shutil.copytree(report.parent / "tokens", data / "tokens")
    finally:
        bench.end()


# ---- the others, each in a process of its own ----


class Clock:
    """Times the updates after the first ones."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def tick(self) -> None:
        self._times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return self._times[-1] - self._times[WARM_UPDATES - 1]


def load(data: Path) -> tuple[Any, TokenRows]:
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(data / "model", dtype=torch.float32).to(device), TokenRows(
        data / "tokens"
    )


def by_hand(data: Path) -> float:
    """Packed inside the update, logits only at labels, fused AdamW, nothing else."""
    import torch
    from torch.nn import functional

    from daemon.worker.batches import collate

    model, tokens = load(data)
    model.train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    stream = Stream(len(tokens), 1, UPDATE_ROWS, 42, STREAM_NAME)
    clock, done = Clock(), 0
    for step in range(stream.total_steps):
        indices = [row for _, row in stream.update(step)]
        lengths = [len(tokens.row(i)[0]) for i in indices]
        sequences = [[indices[p] for p in places] for places in fill(lengths, max(lengths))]
        trained = sum(tokens.trained_tokens(i) for i in indices)
        for first in range(0, len(sequences), MICRO_BATCH):
            batch = collate(tokens, sequences[first : first + MICRO_BATCH], 0)
            labels = batch["labels"][:, 1:]
            where = labels != IGNORED
            hidden = model.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).last_hidden_state
            logits = model.lm_head(hidden[:, :-1][where])
            (functional.cross_entropy(logits, labels[where], reduction="sum") / trained).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
        done += sum(lengths) if step >= WARM_UPDATES else 0
    return done / clock.seconds


def arguments(data: Path, kind: type, **more: Any) -> Any:
    return kind(
        output_dir=str(data / "output"),
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=UPDATE_ROWS // MICRO_BATCH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        num_train_epochs=1,
        logging_steps=WARM_UPDATES,
        save_strategy="no",
        use_cpu=not _cuda(),
        bf16=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **more,
    )


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def dataset(tokens: TokenRows, labels: bool) -> Any:
    from datasets import Dataset

    rows = [tokens.row(i) for i in range(len(tokens))]
    columns = {"input_ids": [ids.tolist() for ids, _ in rows]}
    if labels:
        columns["labels"] = [np.where(mask == 1, ids, IGNORED).tolist() for ids, mask in rows]
    return Dataset.from_dict(columns)


def timed(trainer: Any) -> float:
    """Tokens a second of a Trainer, padding not counted, after its first updates."""
    from transformers import TrainerCallback

    clock, seen, counted = Clock(), [0], []
    step = trainer.training_step

    def counting(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        mask = inputs.get("attention_mask")
        seen[0] += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        return step(model, inputs, *rest)

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()
            counted.append(seen[0])

    trainer.training_step = counting
    trainer.add_callback(Ticks())
    trainer.train()
    return (counted[-1] - counted[WARM_UPDATES - 1]) / clock.seconds


def hugging_face(data: Path) -> float:
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokens = load(data)
    collator = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(data / "model"), padding=True)
    given = arguments(data, TrainingArguments)
    return timed(Trainer(model=model, args=given, train_dataset=dataset(tokens, True), data_collator=collator))


def trl(data: Path, packing: bool) -> float:
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model, tokens = load(data)
    # A packed sequence is as long as several rows: as many fewer of them make an update.
    fewer = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1} if packing else {}
    given = arguments(data, SFTConfig, max_length=LONGEST, packing=packing, gradient_checkpointing=False)
    for name, value in fewer.items():
        setattr(given, name, value)
    tokenizer = AutoTokenizer.from_pretrained(data / "model")
    return timed(SFTTrainer(model=model, args=given, train_dataset=dataset(tokens, True), processing_class=tokenizer))


OTHERS: dict[str, Callable[[Path], float]] = {
    "TRL": lambda data: trl(data, packing=False),
    "TRL, packed": lambda data: trl(data, packing=True),
    "Hugging Face Trainer, padded": hugging_face,
    "written by hand": by_hand,
}


# ---- the comparison ----


def matrix_rate() -> float:
    """Operations a second of a large product of matrices, float32: what this machine can do."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 1024
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def operations_a_token(shape: Shape, longest: int) -> float:
    """Of forward and backward: the layers for each token, the last one for a fifth of them; attention at its most."""
    layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.inner + 2 * longest * shape.hidden
    return 6 * (shape.layers * layer + shape.hidden * shape.vocabulary / SHARE_TRAINED)


def compare(name: str, updates: int, rounds: int, threads: int, folder: Path) -> bool:
    shape, data = SHAPES[name], folder / name
    (data / "model").mkdir(parents=True)
    parameters = make_model(data / "model", shape)
    with (data / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(updates * UPDATE_ROWS, shape))
    keep_tokens(folder / f"{name}-intake", data)
    tokens = TokenRows(data / "tokens")
    trained = sum(tokens.trained_tokens(i) for i in range(len(tokens)))
    share = trained / int(tokens.offsets[-1])
    print(
        f"{name}: {parameters / 1e6:.1f} million parameters, vocabulary {shape.vocabulary}; {len(tokens)} rows of "
        f"{int(tokens.offsets[-1]) / len(tokens):.0f} tokens on average, {share:.0%} trained; {threads} threads"
    )
    speeds: dict[str, list[float]] = {contender: [] for contender in [*OTHERS, "ours"]}
    for turn in range(rounds):
        for contender in OTHERS:
            speeds[contender].append(in_a_process(contender, data))
        speed, packed_losses, _ = ours(folder / f"{name}-{turn}", data, packing=True)
        speeds["ours"].append(speed)
    rate, need = matrix_rate(), operations_a_token(shape, LONGEST)
    for contender, measured in speeds.items():
        speed = median(measured)
        print(f"  {contender:30} {speed:10,.0f} tokens/s   {speed * need / rate:6.1%} of the rate of a large product")
    against = median(speeds["ours"]) / median(speeds["written by hand"])
    best = median(speeds["ours"]) / max(median(speeds["TRL"]), median(speeds["TRL, packed"]))
    _, padded_losses, _ = ours(folder / f"{name}-padded", data, packing=False)
    apart = max(abs(a - b) for a, b in zip(packed_losses, padded_losses, strict=True))
    print(f"ours is {against:.2f} of the loop written by hand, {best:.1f} times the best of TRL")
    print(f"its losses differ from those of the padded training by at most {apart:.1g}")
    return against >= LEAST_SHARE[name] and apart < 1e-3


def in_a_process(contender: str, data: Path) -> float:
    done = subprocess.run(
        [sys.executable, __file__, "--contender", contender, "--data", str(data)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env=os.environ,
    )
    if done.returncode:
        raise RuntimeError(f"{contender}:\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--contender", choices=OTHERS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        print(OTHERS[given.contender](given.data))
        return
    os.environ.update(OMP_NUM_THREADS=str(given.threads), OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory(prefix="throughput-benchmark-") as name:
        good = [compare(model, given.updates, given.rounds, given.threads, Path(name)) for model in given.models]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
