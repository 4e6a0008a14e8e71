"""The embedded model, loaded, and a small token cache, made once."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from daemon.core import files
from daemon.data.tokens import TokensWriter, packed
from daemon.worker.batches import TokenRows


@pytest.fixture
def model(model_folder: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_folder)
    return loaded


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def token_rows(tmp_path_factory: pytest.TempPathFactory) -> TokenRows:
    """23 rows of different lengths; row n begins with n prompt tokens and ends with three trained ones."""
    target = tmp_path_factory.mktemp("cache") / "tokens"
    with files.stage(target) as folder, TokensWriter(folder) as writer:
        for n in range(23):
            ids = [10 + n] * (n + 1) + [5, 6, 7]
            writer.append(packed(ids), b"\0" * (n + 1) + b"\1\1\1", n + 1, n.to_bytes(16, "big"))
        writer.finish("0" * 64, "1" * 64, 0)
    return TokenRows(target)
