"""The state of a training that a checkpoint holds, and copies of it in memory that training does not touch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from daemon.core.attempts import Manifest

MARGIN = 1.1  # of a copy's size: what writing it takes besides
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class State:
    """All that one checkpoint holds; the manifest still without its files."""

    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    rng: dict[str, Any]
    progress: dict[str, Any]
    consumed: bytes
    manifest: Manifest

    @property
    def bytes(self) -> int:
        """Of the tensors that a copy would hold."""
        seen = {_storage(t): t.nbytes for t in _tensors([self.model, self.optimizer])}
        return sum(seen.values())


class Copies:
    """Memory for one copy of a state: taken once, used again for each."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def reserve(self, state: State) -> None:
        """Take the memory for states of this shape, and touch it."""
        self._filled(state, lambda buffer, _: buffer.zero_())

    def of(self, state: State) -> State:
        """The same state in these buffers; the copy before is gone. Tensors that share memory share it here too."""
        copy = self._filled(state, lambda buffer, tensor: buffer.copy_(tensor, non_blocking=tensor.is_cuda))
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies are on their way
        return copy

    def _filled(self, state: State, fill: Callable[[torch.Tensor, torch.Tensor], object]) -> State:
        shared: dict[tuple[Any, ...], torch.Tensor] = {}

        def visit(name: str, value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                place = _storage(value)
                if place not in shared or not value.numel():
                    shared[place] = self._buffer(name, value)
                    fill(shared[place], value.detach())
                return shared[place]
            if isinstance(value, dict):
                return {key: visit(f"{name}/{key}", inner) for key, inner in value.items()}
            if isinstance(value, list | tuple):
                return type(value)(visit(f"{name}/{i}", inner) for i, inner in enumerate(value))
            return value

        return replace(state, model=visit("model", state.model), optimizer=visit("optimizer", state.optimizer))

    def _buffer(self, name: str, like: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
            self._buffers[name] = buffer
        return buffer


def lacking_memory(state: State) -> str | None:
    """Why there is no room for a copy, in words; None where there is."""
    needed, free = int(state.bytes * MARGIN), free_memory()
    if needed <= free:
        return None
    return f"a copy takes {needed / 1e6:,.0f} MB of memory, {free / 1e6:,.0f} MB are free"


def free_memory() -> int:
    """Bytes of the machine's memory that this process may still take, its control group's limit considered."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for one in inner for tensor in _tensors(one)]


def _storage(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
