"""Damages to checkpoints, manifests and `latest`, at random: whether they are noticed before anything is loaded.

    python benchmarks/damages.py [--count 1000] [--seed 0] [--without-trainer]

Each time a workspace with three accepted models, one upon the other, loses bytes in one way, and the next job is about
to begin: the daemon has to notice, and to build upon the newest model that is whole. Then Hugging Face Trainer resumes
from a checkpoint of its own that is damaged in each of these ways, and what it makes of that stands beside.
"""

import argparse
import asyncio
import json
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import structlog

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from daemon.core.attempts import Manifest  # noqa: E402 - from this checkout
from daemon.core.paths import Workspace  # noqa: E402
from daemon.core.records import State  # noqa: E402
from daemon.jobs import ledger, store  # noqa: E402
from daemon.models import checkpoints  # noqa: E402
from daemon.service import going_back  # noqa: E402
from tests.helpers_jobs import ledger_line, make_workspace, put_job  # noqa: E402
from tests.helpers_plots import context_of  # noqa: E402

STEPS = (10, 20, 30)
FILES = ("model.safetensors", "optimizer.pt", "rng_state.pth", "config.json", checkpoints.CONSUMED)


def missing(path: Path, draw: Random) -> None:
    path.unlink()


def truncated(path: Path, draw: Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def zeroed(path: Path, draw: Random) -> None:
    size = path.stat().st_size
    start = draw.randrange(size)
    data = path.read_bytes()
    end = min(size, start + 4096)
    if data[start:end].strip(b"\0"):
        path.write_bytes(data[:start] + bytes(end - start) + data[end:])
    else:
        one_bit(path, draw)


def one_bit(path: Path, draw: Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def swapped(path: Path, draw: Random) -> None:
    """It has the bytes of another file of the same folder."""
    others = [name for name in FILES if name != path.name]
    shutil.copyfile(path.with_name(draw.choice(others)), path)


def stale(path: Path, draw: Random) -> None:
    """It has the bytes that the file of the same name had in the checkpoint before."""
    older = path.parent.with_name(f"checkpoint-{STEPS[STEPS.index(checkpoints.step_of(path.parent)) - 1]}")
    shutil.copyfile(older / path.name, path)


KINDS = (missing, truncated, zeroed, one_bit, swapped, stale)


@dataclass
class Told:
    """How many damages of each kind there were, and which were not noticed or not mended."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def make_models(root: Path) -> Workspace:
    """Three small models that differ in every file, each accepted upon the one before."""
    workspace = make_workspace(root)
    manifest = json.loads((ROOT / "tests/golden/Manifest.json").read_text())
    lineage: list[dict[str, object]] = []
    parent = None
    for step in STEPS:
        job = put_job(workspace, State.COMPLETED, f"{step}.jsonl").id
        lineage.append({"job": job, "file": f"{step}.jsonl", "sha256": "e", "rows": 2, "epochs": 1, "steps": 10})
        folder = workspace.checkpoint(step)
        folder.mkdir()
        for name in FILES:
            (folder / name).write_bytes(Random(f"{step} {name}").randbytes(20_000))
        facts = {"job": job, "step": step, "base_step": step - 10, "job_step": 10, "parent": parent, "final": True}
        sealed = Manifest.model_validate({**manifest, **facts, "lineage": list(lineage)})
        sealed.model_copy(update={"files": checkpoints.seal_files(folder)}).save(folder / checkpoints.MANIFEST)
        parent = checkpoints.name_of(folder)
        ledger.record(workspace, ledger_line(job=job, outcome="completed", checkpoint=folder.name))
        checkpoints.accept(workspace, folder)
    put_job(workspace, State.NORMAL, "next.jsonl")
    return workspace


def damage_files(workspace: Workspace, draw: Random) -> tuple[str, str]:
    """What was done to the newest model, sometimes also to the one before; and the model that has to be used."""
    kind, name = draw.choice(KINDS), draw.choice((*FILES, checkpoints.MANIFEST))
    kind(workspace.checkpoint(30) / name, draw)
    words = f"{kind.__name__}: {name}"
    if draw.random() < 0.2:
        kind(workspace.checkpoint(20) / name, draw)
        return words + ", in two models", "checkpoint-10"
    return words, "checkpoint-20"


def damage_latest(workspace: Workspace, draw: Random) -> tuple[str, str]:
    """`latest` itself; the newest model is whole, and has to be used. An older one that it names is believed."""
    kind = draw.choice(("missing", "a file", "a folder", "truncated", "one bit", "stale"))
    link = workspace.latest
    name = os.readlink(link)
    link.unlink()
    if kind == "a file":
        link.write_bytes(bytes(draw.randrange(20)))
    elif kind == "a folder":
        link.mkdir()
    elif kind == "truncated":
        link.symlink_to(name[: draw.randrange(1, len(name))])
    elif kind == "one bit":
        letters = bytearray(name.encode())
        place = draw.randrange(len(letters))
        letters[place] ^= draw.choice([bit for bit in (1, 2, 4, 8, 16) if letters[place] ^ bit not in (0, 47)])
        link.symlink_to(letters.decode())
    elif kind == "stale":
        link.symlink_to("checkpoint-20")
    known = {f"checkpoint-{step}" for step in STEPS}
    now = os.readlink(link) if link.is_symlink() else ""
    return f"{kind}: latest", now if now in known else "checkpoint-30"


def try_one(workspace: Workspace, damage: Callable[[Workspace, Random], tuple[str, str]], draw: Random) -> Told:
    """One damage, and what the daemon makes of it before the next job begins."""
    words, expected = damage(workspace, draw)
    context = context_of(workspace)
    waiting = next(found for found in store.waiting(workspace) if found.job.file == "next.jsonl")
    asyncio.run(going_back.look_after_model(context, waiting.id))
    told = Told(Counter([words.split(",")[0]]))
    used = checkpoints.latest(workspace)
    events = workspace.events.read_text() if workspace.events.exists() else ""
    if not ("model_damaged" in events or "the model accepted last is" in events):
        told.wrong.append(f"{words}: not noticed")
    if used is None or used.name != expected or checkpoints.damage(used):
        told.wrong.append(f"{words}: {used} is used instead of {expected}")
    return told


def rounds(folder: Path, count: int, seed: int) -> Told:
    """So many damages, one in five of them to `latest`, each to a fresh workspace."""
    total, draw = Told(), Random(seed)
    whole = make_models(folder / "whole")
    for _ in range(count):
        root = folder / "w"
        shutil.copytree(whole.root, root, symlinks=True)
        damage = damage_latest if draw.random() < 0.2 else damage_files
        told = try_one(Workspace.at(root), damage, draw)
        total.counts += told.counts
        total.wrong += told.wrong
        shutil.rmtree(root)
    return total


# ---- Hugging Face's own resume ----

THEIR_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
THEIR_STEPS = 6


def their_training(folder: Path, model: Path, resume: Path | None) -> str:
    """Six steps on a small model, a checkpoint after the third; one hash over the weights that come out."""
    import hashlib

    import torch
    from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed

    set_seed(0)
    rows = [{"input_ids": [n, n + 1, n + 2, 5], "labels": [n, n + 1, n + 2, 5]} for n in range(10, 34)]
    arguments = TrainingArguments(
        str(folder),
        max_steps=THEIR_STEPS,
        save_steps=3,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    network = AutoModelForCausalLM.from_pretrained(model, attention_dropout=0.1, dtype=torch.float32)
    trainer = Trainer(model=network, args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    weights = b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())
    return hashlib.sha256(weights).hexdigest()


def try_trainer(folder: Path, seed: int) -> None:
    """What the same kinds of damage do to a resumed training of Hugging Face Trainer."""
    from transformers.utils import logging as their_logging

    from daemon.worker import embedded

    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    draw, model = Random(seed), folder / "model"
    model.mkdir()
    embedded.make(model)
    undisturbed = their_training(folder / "whole", model, None)
    whole = folder / "whole/checkpoint-3"
    shutil.copytree(folder / "whole/checkpoint-3", folder / "kept")
    assert their_outcome(folder, model, whole) == undisturbed, "without damage it is the same"
    outcomes: Counter[str] = Counter()
    for kind in (missing, truncated, zeroed, one_bit):
        for name in THEIR_FILES:
            shutil.rmtree(whole)
            shutil.copytree(folder / "kept", whole)
            kind(whole / name, draw)
            found = their_outcome(folder, model, whole)
            same = "the same weights" if found == undisturbed else "OTHER WEIGHTS, silently"
            words = same if found else "refused"
            outcomes[words] += 1
            print(f"  {kind.__name__:<10} {name:<19} {words}")
    print("Hugging Face's own resume: " + ", ".join(f"{count} {words}" for words, count in outcomes.items()))


def their_outcome(folder: Path, model: Path, checkpoint: Path) -> str:
    """The hash of the weights; empty where the resume was refused."""
    try:
        return their_training(folder / "resumed", model, checkpoint)
    except Exception:  # any error is a refusal
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-trainer", action="store_true", help="leave the second part out")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory(prefix="damages-") as name:
        told = rounds(Path(name), given.count, given.seed)
        for words, count in sorted(told.counts.items()):
            print(f"  {count:4} {words}")
        print(f"{given.count} damages: {len(told.wrong)} not noticed, or not mended", *told.wrong[:20], sep="\n  ")
        if not given.without_trainer:
            try_trainer(Path(name), given.seed)
    return 1 if told.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
