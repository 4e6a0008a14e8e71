"""What saving costs a training: how long it waits, beside Hugging Face Trainer's own save of the same state.

    python benchmarks/checkpoint.py [--millions 40] [--saves 5] [--steps 300] [--rounds 2]

A model of so many million parameters is trained by the real worker: the same rows with three saves on the way and with
none, in turn; compared are the times from step 10 to the last, before the save at the end. Then, in one process and at
the steps of one training, worker and Hugging Face save the same model, optimizer and generators in turn.
"""

import argparse
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from daemon.core import files  # noqa: E402 - from this checkout
from daemon.data.tokens import TokensWriter, packed  # noqa: E402
from tests.acceptance.bench import Bench, rows  # noqa: E402

PATIENCE_SECONDS = 3600
ROWS_OF_AN_UPDATE = 2


def make_model(folder: Path, millions: float) -> Path:
    """The embedded model's tokenizer with a larger model, of random weights."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from daemon.worker import embedded

    embedded.make(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    layers, width = 8, 64
    while True:
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=width // 8,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
        with torch.device("meta"):
            size = sum(p.numel() for p in Qwen3ForCausalLM(config).parameters())
        if size >= millions * 1e6:
            break
        width += 64
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    print(f"a model of {size / 1e6:.1f} million parameters, {torch.get_num_threads()} threads", flush=True)
    return folder


def make_bench(root: Path, model: Path, steps: int, saves: int) -> Bench:
    return Bench.make(
        root,
        model,
        training_method="full",
        per_device_train_batch_size=ROWS_OF_AN_UPDATE,
        gradient_accumulation_steps=1,
        num_train_epochs=1,
        save_steps=steps // (saves + 1) if saves else 10 * steps,
        gate={"mode": "off"},
        logging_steps=10,
    )


def train(root: Path, model: Path, steps: int, saves: int) -> tuple[Bench, float, list[dict[str, Any]]]:
    """Seconds from step 10 to the last, and the saves on the way."""
    bench = make_bench(root, model, steps, saves)
    bench.drop("rows.jsonl", rows(steps * ROWS_OF_AN_UPDATE))
    bench.start()
    try:
        (job,) = bench.wait_for("completed", seconds=PATIENCE_SECONDS)
    finally:
        bench.end()
    times = [datetime.fromisoformat(line["time"]) for line in bench.log(job, "log")]
    done = [line for line in bench.log(job, "event") if line["event"] == "saved" and not line["final"]]
    return bench, (times[-1] - times[0]).total_seconds(), done


def compare_times(folder: Path, model: Path, steps: int, rounds: int) -> Bench:
    """With and without saves, in turn; one of the workspaces."""
    seconds: dict[int, list[float]] = {0: [], 3: []}
    for turn in range(rounds):
        for saves in (0, 3):
            bench, took, done = train(folder / f"{turn}-{saves}", model, steps, saves)
            assert len(done) == saves, done
            seconds[saves].append(took)
            waits = ", ".join(f"{1000 * line['stall_seconds']:.0f} of {1000 * line['seconds']:.0f}" for line in done)
            print(f"  {steps} steps, {saves} saves: {took:.2f} s; training waited {waits or 'for none'} ms", flush=True)
    print(f"with three saves it takes {median(seconds[3]) / median(seconds[0]):.3f} times as long as with none")
    return bench


def write_tokens(target: Path, count: int) -> None:
    """Any rows will do; those of a finished job are not kept."""
    target.parent.mkdir(parents=True)
    with files.stage(target) as folder, TokensWriter(folder) as writer:
        for row in range(count):
            writer.append(packed(range(5, 37)), bytes(8) + b"\1" * 24, row + 1, row.to_bytes(16, "big"))
        writer.finish("0" * 64, "1" * 64, 0)


def compare_saves(bench: Bench, saves: int) -> None:
    """Both save at the same steps of one training, in this process."""
    from transformers import TrainerCallback

    from daemon.core.attempts import Assignment
    from daemon.core.config import Settings
    from daemon.core.heartbeat import Heartbeat
    from daemon.core.paths import Attempt
    from daemon.worker.callbacks import Orders
    from daemon.worker.loading import prepare_torch
    from daemon.worker.train import Training

    attempt = Attempt(next((bench.root / "runs").glob("*/attempts/*")))
    given = Assignment.load(attempt.assignment)
    assert given
    write_tokens(bench.root / given.tokens, given.rows)
    settings = {**given.settings, "save_steps": 1, "save_min_seconds": 10**6}  # none is due but those made below
    training = Training(
        given.model_copy(update={"settings": settings}),
        attempt,
        Heartbeat(attempt.heartbeat),
        Orders(attempt),
        prepare_torch(Settings.model_validate(settings)),
    )
    trainer, saver = training._trainer, training.saver
    ours: list[float] = []
    theirs: list[float] = []

    class Both(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            began = time.monotonic()
            trainer._save_checkpoint(trainer.model, None)
            theirs.append(time.monotonic() - began)
            began = time.monotonic()
            saver.save(trainer, [], final=False, wait=False)
            ours.append(time.monotonic() - began)
            (saved,) = saver.settle()
            aside = f"{1000 * ours[-1]:.0f} ms, then {saved.seconds:.2f} s aside, hashed and synced"
            print(f"  {saved.bytes / 1e6:.0f} MB: ours {aside}; Hugging Face's {1000 * theirs[-1]:.0f} ms", flush=True)
            control.should_training_stop = len(ours) == saves

    trainer.add_callback(Both())
    trainer.train()
    stall, own = median(ours[1:]), median(theirs[1:])
    print(
        f"from the second save on training waits {1000 * stall:.0f} ms, with Hugging Face's save {1000 * own:.0f} ms:"
    )
    print(f"one {own / stall:.1f}th of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=40, help="of parameters")
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="checkpoint-benchmark-") as name:
        folder = Path(name)
        (folder / "model").mkdir()
        model = make_model(folder / "model", given.millions)
        bench = compare_times(folder, model, given.steps, given.rounds)
        compare_saves(bench, given.saves)


if __name__ == "__main__":
    main()
