"""Out of memory: how it is recognised."""

import torch


class OutOfMemory(Exception):
    """There was not enough memory for an update; it left no trace in weights and optimizer."""


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice. For main memory torch has no type of its own, only words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
