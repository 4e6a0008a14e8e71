"""What the headers of safetensors files say: names and shapes, read without loading a weight."""

import json
import math
import struct
from pathlib import Path
from typing import Any

from daemon.core.errors import BadData

INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100 * 2**20  # the format's own limit
_REMEDY = "copy or download the model again; this file is cut off or damaged"


def read_header(path: Path) -> dict[str, Any]:
    """Each tensor's dtype, shape and place; raises BadData where the file is not whole."""
    size = path.stat().st_size
    with path.open("rb") as content:
        start = content.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(LONGEST_HEADER, size):
            raise BadData(f"{path} is no safetensors file.", _REMEDY)
        try:
            header = json.loads(content.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        except (ValueError, AttributeError, KeyError, TypeError):
            raise BadData(f"{path} has a damaged header.", _REMEDY) from None
    if 8 + length + end != size:
        raise BadData(f"{path} has {size} bytes; its header asks for {8 + length + end}.", _REMEDY)
    return tensors


def shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor of a model folder."""
    return {
        name: entry["shape"]
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in read_header(path).items()
    }


def count(tensors: dict[str, list[int]]) -> int:
    """How many numbers these tensors hold together; a weight that two layers share is stored, and counted, once."""
    return sum(math.prod(shape) for shape in tensors.values())


def check(folder: Path) -> None:
    """Refuse a folder whose shards are not all there and whole."""
    index = folder / INDEX
    if index.is_file():
        try:
            wanted = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise BadData(f"{index} is damaged.", _REMEDY) from None
        for name in sorted(wanted):
            if not (folder / name).is_file():
                raise BadData(f"{folder / name} is missing: the model is not whole.", _REMEDY)
    shapes(folder)
