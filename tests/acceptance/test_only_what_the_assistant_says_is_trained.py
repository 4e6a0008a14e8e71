"""Models of real families, trained by the installed commands: the labels in the worker's loss are what is expected of
the raw messages, packed and padded.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.acceptance.bench import Bench, lines
from tests.helpers_conversations import Conversation, conversations, decoded_runs, expected_texts, transformers_ids
from tests.helpers_families import FAMILIES, family_tokenizer, make_family_folder

WITNESS = Path(__file__).with_name("witness")
ROOT = Path(__file__).parents[2]  # the code under test, whichever checkout this is
# Reasoning, tools as JSON, thoughts that the template drops; headers of several tokens; stripped text; no end of the
# question but [/INST]. Gemma's attention sees a window in every other layer.
ARCHITECTURES = {"qwen3": "Qwen3", "llama3_1": "Llama", "gemma2": "Gemma2", "mistral_v3": "Mistral"}
ROWS, EPOCHS, IGNORED = 30, 2, -100
MAKE = """
import sys, transformers, torch
folder, name, vocabulary = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.manual_seed(0)
config = getattr(transformers, name + "Config")(vocab_size=vocabulary, hidden_size=32, intermediate_size=48,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=4096)
getattr(transformers, name + "ForCausalLM")(config).save_pretrained(folder)
"""
Content = tuple[tuple[int, ...], tuple[str, ...]]  # the tokens of a row, and the texts that it trains


def make_model(folder: Path, name: str) -> Path:
    vocabulary = str(family_tokenizer(name).get_vocab_size())
    command = [sys.executable, "-c", MAKE, str(folder), ARCHITECTURES[name], vocabulary]
    subprocess.run(command, check=True, capture_output=True)
    return make_family_folder(folder, name)


def expected(name: str, folder: Path, talks: list[Conversation]) -> Counter[Content]:
    theirs = AutoTokenizer.from_pretrained(folder)
    family = FAMILIES[name]
    each = [(tuple(transformers_ids(theirs, family, talk)), tuple(expected_texts(family, talk))) for talk in talks]
    return Counter(each * EPOCHS)


def trained(name: str, witnessed: list[dict[str, Any]]) -> Counter[Content]:
    """What the worker's loss was computed from."""
    found: Counter[Content] = Counter()
    for batch in (x["trained"] for x in witnessed if "trained" in x):
        for ids, labels in rows_of(batch):
            is_trained = [label != IGNORED for label in labels]
            if any(is_trained) or "attention_mask" in batch:
                assert all(label in (IGNORED, token) for label, token in zip(labels, ids, strict=True))
                found[tuple(ids), tuple(decoded_runs(name, ids, is_trained))] += 1
    return found


def rows_of(batch: dict[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens and, beside each, the label by which it was predicted; the padding behind packed rows comes out too."""
    for place, ids in enumerate(batch["input_ids"]):
        labels = [IGNORED, *batch["labels"][place]]
        if "attention_mask" in batch:
            end = sum(batch["attention_mask"][place])
            yield ids[:end], labels[:end]
            assert set(labels[end:]) <= {IGNORED}
        else:
            starts = [i for i, position in enumerate(batch["position_ids"][place]) if position == 0]
            yield from ((ids[start:end], labels[start:end]) for start, end in pairwise([*starts, len(ids)]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_what_the_assistant_says_is_trained(name: str, make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    model = make_model(tmp_path / name, name)
    bench = make_bench(of=model, num_train_epochs=EPOCHS, max_length=4096, training_method="full", packing=True)
    bench.environment |= {"PYTHONPATH": f"{WITNESS}:{ROOT}", "WITNESS_FILE": str(tmp_path / "witness.jsonl")}
    talks = [replace(talk, enable_thinking=None) for talk in conversations(name)[: 2 * ROWS]]
    bench.start()
    seen = 0
    for layout, part in (("packed", talks[:ROWS]), ("padded", talks[ROWS:])):
        bench.configure(packing=layout == "packed")
        bench.drop(f"{layout}.jsonl", "".join(json.dumps(talk.row) + "\n" for talk in part))
        bench.wait_for("completed", 1 if layout == "packed" else 2)
        (job,) = [line["job"] for line in lines(bench.root / "runs/ledger.jsonl") if line["file"] == f"{layout}.jsonl"]
        (started,) = [line for line in bench.log(job, "event") if line["event"] == "started"]
        assert started["layout"] == layout, started["layout_reason"]
        witnessed = lines(tmp_path / "witness.jsonl")
        assert trained(name, witnessed[seen:]) == expected(name, model, part)
        seen = len(witnessed)
