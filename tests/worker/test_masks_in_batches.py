"""What is trained when the conversations of the real families have come through the token cache into batches.

Rows are told apart by what the model gets alone: the attention mask, or the restart of the positions.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from daemon.core import files
from daemon.data.formats import normalise
from daemon.data.render import Renderer
from daemon.data.tokens import TokensWriter, packed
from daemon.worker.batches import IGNORED, Layout, Stream, TokenRows, Updates
from tests.helpers_conversations import CONVERSATIONS, conversations, decoded_runs, expected_texts, transformers_ids
from tests.helpers_families import FAMILIES, make_family_folder

Content = tuple[tuple[int, ...], tuple[str, ...]]  # the tokens of a row, and the texts that it trains
Batch = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family's name and folder; in the folder its conversations as a token cache."""
    folder = make_family_folder(tmp_path_factory.mktemp("family"), request.param)
    renderers = {thinking: Renderer(folder, thinking) for thinking in (None, True, False)}
    with files.stage(folder / "tokens") as staged, TokensWriter(staged) as writer:
        for number, talk in enumerate(conversations(request.param), 1):
            row, renderer = normalise(talk.row), renderers[talk.enable_thinking]
            (encoded,) = renderer.encode([renderer.draft(row)])
            writer.append(packed(encoded.ids), encoded.mask, number, row.digest)
        writer.finish("0" * 64, "1" * 64, 0)
    return request.param, folder


def expected(name: str, folder: Path) -> Counter[Content]:
    """From transformers and the raw messages."""
    theirs = AutoTokenizer.from_pretrained(folder)
    return Counter(
        (tuple(transformers_ids(theirs, FAMILIES[name], talk)), tuple(expected_texts(FAMILIES[name], talk)))
        for talk in conversations(name)
    )


def rows_of(batch: Batch) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens and labels of each row in a batch, and of the padding behind packed rows."""
    for place, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
        if "attention_mask" in batch:
            there = batch["attention_mask"][place].tolist()
            yield tuple([x for x, is_there in zip(xs, there, strict=True) if is_there] for xs in (ids, labels))  # type: ignore[misc]
            continue
        positions = batch["position_ids"][place].tolist()
        starts = [i for i, position in enumerate(positions) if position == 0]
        for start, end in pairwise([*starts, len(ids)]):
            assert positions[start:end] == list(range(end - start))
            yield ids[start:end], labels[start:end]


@pytest.mark.parametrize("layout", list(Layout))
def test_every_trained_token_is_a_label_once_and_nothing_else_is(family: tuple[str, Path], layout: Layout) -> None:
    name, folder = family
    rows = TokenRows(folder / "tokens")
    updates = Updates(rows, Stream(len(rows), 1, 16, 0, name), 4, pad_id=0, layout=layout)
    found: Counter[Content] = Counter()
    for step in range(len(updates)):
        item = updates[step]
        labels = torch.cat([batch["labels"].flatten() for batch in item["micro_batches"]])
        assert int((labels != IGNORED).sum()) == item["trained_tokens"]
        for ids, marked in (row for batch in item["micro_batches"] for row in rows_of(batch)):
            trained = [label != IGNORED for label in marked]
            if not any(trained) and layout is not Layout.PADDED:
                assert set(ids) == {0}, "what is never trained is padding"
                continue
            assert not trained[0], "nothing comes before a row's first token"
            assert all(label in (IGNORED, token) for label, token in zip(marked, ids, strict=True))
            found[tuple(ids), tuple(decoded_runs(name, ids, trained))] += 1
    assert found == expected(name, folder)
    assert found.total() == CONVERSATIONS


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.FLAT])
def test_packing_lays_several_of_these_rows_into_one_sequence(family: tuple[str, Path], layout: Layout) -> None:
    name, folder = family
    rows = TokenRows(folder / "tokens")
    item = Updates(rows, Stream(len(rows), 1, 16, 0, name), 4, pad_id=0, layout=layout)[0]
    assert sum(len(batch["input_ids"]) for batch in item["micro_batches"]) < len(item["rows"]) == 16
