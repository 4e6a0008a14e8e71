"""Whether a model keeps packed rows apart, found out by trying, before the first packed step."""

import torch
from transformers import PreTrainedModel

from daemon.core.config import Settings
from daemon.core.heartbeat import Heartbeat, Phase
from daemon.worker.batches import Layout, TokenRows, collate, pad
from daemon.worker.evaluate import aside

TRIED_ROWS = 4
# The largest difference of a logit, in standard deviations of the logits. Packing changes the order of sums, which
# moves the last digits; attention that leaks from row to row moves the first. Losses would show it less clearly:
# those of a fresh model hardly depend on its attention.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}


def choose_layout(
    model: PreTrainedModel, rows: TokenRows, settings: Settings, pad_id: int, heartbeat: Heartbeat
) -> tuple[Layout, str]:
    """How this model's batches are to be laid out, and why, in words."""
    if not settings.packing:
        return Layout.PADDED, "packing is off"
    if len(rows) < 2:
        return Layout.PADDED, "there is only one row"
    flash = "flash" in str(model.config._attn_implementation)
    indices = list(range(min(TRIED_ROWS, len(rows))))
    try:
        with aside(model, heartbeat, Phase.LOAD), torch.no_grad(), torch.autocast(model.device.type, enabled=flash):
            apart = logits(model, pad(rows, indices, pad_id))
            together = logits(model, collate(rows, [indices], pad_id))[0]
    except (TypeError, ValueError, RuntimeError) as error:
        return Layout.PADDED, f"the model takes no packed rows ({type(error).__name__}: {error})"
    lengths = [len(rows.row(i)[0]) for i in indices]
    separate = torch.cat([apart[place, :length] for place, length in enumerate(lengths)])
    difference = float((together - separate).abs().max() / separate.std())
    if difference > TOLERANCE["bfloat16" if flash else "float32"]:
        return Layout.PADDED, f"packed rows disturb each other in this model: its logits differ by {difference:.2g} σ"
    layout = Layout.FLAT if flash else Layout.PACKED
    return layout, f"packed and separate rows have the same logits (within {difference:.1g} σ)"


def logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model says to a micro-batch, in float32, of shape (sequences, tokens, vocabulary)."""
    inputs = {name: part.to(model.device) for name, part in batch.items() if name != "labels"}
    return model(**inputs, use_cache=False).logits.float()  # type: ignore[no-any-return]
