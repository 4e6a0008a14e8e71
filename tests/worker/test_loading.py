"""The attention that a model's config.json selects is used where it can learn, and refused in words where it cannot."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from daemon.core.config import Settings
from daemon.core.errors import BadConfig
from daemon.worker.loading import load_model

SETTINGS = Settings(model_name="m", base_model="b")


def selecting(implementation: str, model_folder: Path, folder: Path) -> Path:
    """The embedded model, with the implementation of attention named in its config.json."""
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes((model_folder / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": implementation}))
    return folder


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_selected_attention_is_used(implementation: str, model_folder: Path, tmp_path: Path) -> None:
    model = load_model(selecting(implementation, model_folder, tmp_path), None, SETTINGS, 0)
    assert model.config._attn_implementation == implementation


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can train it")
def test_flex_attention_is_refused_on_a_cpu(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="flex_attention, which cannot learn on a CPU") as refused:
        load_model(selecting("flex_attention", model_folder, tmp_path), None, SETTINGS, 0)
    assert "attn_implementation" in refused.value.remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can train it")
def test_that_is_still_so_with_this_torch() -> None:
    query = torch.ones(1, 1, 16, 16, requires_grad=True)
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        torch.nn.attention.flex_attention.flex_attention(query, query, query)


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="it is installed")
def test_an_attention_that_is_not_installed_is_named(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="FlashAttention2") as refused:
        load_model(selecting("flash_attention_2", model_folder, tmp_path), None, SETTINGS, 0)
    assert "install what it needs" in refused.value.remedy
