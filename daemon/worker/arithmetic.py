"""With what a model is calculated here: which numbers, which attention, which kernels, compiled or not."""

import importlib.util
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from types import MethodType
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from daemon.core.config import Settings
from daemon.core.errors import BadConfig

Numbers = Literal["float32", "bfloat16", "float16"]

FIRST_SCALE = 2.0**16  # of losses in float16, with these two as in torch.amp.GradScaler
GROWTH = 2.0
GOOD_UPDATES = 2000  # until a larger scale is tried

COMPILING = ("torch_compile", "torch_compile_backend", "torch_compile_mode")


@dataclass(frozen=True)
class Arithmetic:
    """What decides how a sum is rounded, besides libraries and processors. Weights are float32 whatever it is."""

    numbers: Numbers
    attention: str | None  # as transformers names the implementation; None = as the model has it
    kernels: str

    def names(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()}


def choose(settings: Settings) -> Arithmetic:
    """By what is set, and else by what is here. Raises BadConfig where what is set cannot be had."""
    numbers = _numbers(settings.training_args)
    return Arithmetic(numbers, _attention(settings.attn_implementation, numbers), _kernels(settings.training_args))


def used(model: PreTrainedModel, settings: Settings) -> Arithmetic:
    """What was chosen, with the attention that the model has come to."""
    return replace(choose(settings), attention=str(model.config._attn_implementation))


def _numbers(given: dict[str, Any]) -> Numbers:
    if given.get("bf16") and given.get("fp16"):
        raise BadConfig("training_args has both bf16 and fp16.", "take one of them out of config.json")
    if given.get("bf16"):
        return "bfloat16"
    if given.get("fp16"):
        return "float16"
    if not torch.cuda.is_available() or given.get("use_cpu") or {"bf16", "fp16"} & given.keys():
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _attention(asked: str, numbers: Numbers) -> str | None:
    if asked.startswith("flash") and numbers == "float32" and torch.cuda.is_available():
        raise BadConfig(
            f"attn_implementation {asked} calculates in bfloat16 or float16 only.",
            "set attn_implementation to sdpa, or take bf16 and fp16 out of training_args",
        )
    if asked != "auto":
        return asked
    if torch.cuda.is_available() and numbers != "float32" and importlib.util.find_spec("flash_attn"):
        return "flash_attention_2"
    return None


def _kernels(given: dict[str, Any]) -> str:
    asked, here = given.get("use_liger_kernel"), importlib.util.find_spec("liger_kernel") is not None
    if asked and not torch.cuda.is_available():
        raise BadConfig("use_liger_kernel needs a GPU, and there is none.", "take it out of training_args")
    if asked and not here:
        raise BadConfig("use_liger_kernel needs liger-kernel, which is not here.", "pip install liger-kernel")
    return "liger" if torch.cuda.is_available() and here and asked is not False else "torch"


# ---- float16 ----


class LossScale:
    """Keeps gradients within float16: losses are multiplied before gradients are taken, gradients divided after.

    Where a gradient was too large nevertheless, the scale is halved and the same update calculated again: unlike with
    torch.amp.GradScaler no row is passed over. Powers of two change no digit of what fits.
    """

    def __init__(self, numbers: Numbers, state: dict[str, float] | None = None) -> None:
        self.factor = FIRST_SCALE if numbers == "float16" else 1.0
        self._good = 0
        self._used = numbers == "float16"
        if state:
            self.factor, self._good = state["factor"], int(state["good"])

    @property
    def state(self) -> dict[str, float] | None:
        """For a checkpoint."""
        return {"factor": self.factor, "good": self._good} if self._used else None

    def unscale(self, parameters: Iterable[nn.Parameter], loss: torch.Tensor) -> bool:
        """Divide the gradients of an update; False where the update has to be calculated again, with a lower scale.

        What is not finite at any scale is not to be mended here: such gradients are left as they are.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not self._used or not gradients:
            return True
        torch._foreach_mul_(gradients, 1 / self.factor)
        if not torch.isfinite(loss) or torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            self._good += 1
            if self._good >= GOOD_UPDATES:
                self.factor, self._good = self.factor * GROWTH, 0
            return True
        if self.factor <= 1.0:
            return True
        self.factor, self._good = self.factor / GROWTH, 0
        return False


def calculate_in(model: nn.Module, numbers: Numbers) -> None:
    """Let the model's products be made in these numbers; its weights stay as they are."""
    if numbers == "float32":
        return
    inner = model.get_base_model() if isinstance(model, PeftModel) else model  # which generates past the adapter's
    device = next(inner.parameters()).device.type
    forward = torch.autocast(device, dtype=getattr(torch, numbers))(type(inner).forward)
    inner.forward = MethodType(forward, inner)


# ---- compiled ----


def compile_layers(model: PreTrainedModel, given: dict[str, Any]) -> str | None:
    """Compile the layers that repeat, as `torch_compile` asks for; what was compiled, in words.

    Layer by layer: all are compiled as one, and what is asked of the last layer stays outside.
    """
    if not given.get("torch_compile"):
        return None
    repeated = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in repeated]
    if not layers:
        raise BadConfig(f"{type(model).__name__} has no layers that can be compiled.", "take torch_compile out")
    more = {"backend": given.get("torch_compile_backend"), "mode": given.get("torch_compile_mode")}
    for layer in layers:
        layer.compile(dynamic=True, **{name: value for name, value in more.items() if value is not None})
    return f"{len(layers)} × {type(layers[0]).__name__}"
