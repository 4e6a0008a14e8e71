"""Families of models for tests: their real chat templates, small tokenizers with their special tokens as single ids,
and, by hand, what a turn's trained text is.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEMPLATES = Path(__file__).parent / "templates"
TEXT = "The capital of France is Paris. What is the answer to this question? I think it is so, because it is said. "
THINK = ("<think>", "</think>")
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Turn:
    """An assistant's turn as the data has it, and where it stands."""

    content: str
    reasoning: str
    calls: list[dict[str, Any]]  # functions, their arguments as the template prints them
    is_after_last_question: bool
    is_last: bool
    thinking_off: bool


@dataclass(frozen=True)
class Family:
    """`said` is what the assistant's turn trains, the token that ends it included."""

    name: str
    said: Callable[[Turn], str]
    special: tuple[str, ...]
    bos: str | None
    eos: str
    plain: tuple[str, ...] = ()  # added tokens that are not marked as special
    tools: Literal["object", "text", "either"] | None = None  # the form of arguments; None: it knows no tools
    system: bool = True
    one_call: bool = False
    thinks: bool = False  # knows reasoning_content
    kind: Literal["bytes", "first space", "spaces"] = "bytes"
    strips_right: bool = False  # special tokens swallow the white space behind them
    marked: bool = False

    @property
    def template(self) -> str:
        return (TEMPLATES / f"{self.name}.jinja").read_text()


# ---- what is trained, by hand ----


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _qwen_calls(calls: list[dict[str, Any]]) -> list[str]:
    return [
        f'<tool_call>\n{{"name": "{c["name"]}", "arguments": {_json(c["arguments"])}}}\n</tool_call>' for c in calls
    ]


def chatml(turn: Turn) -> str:
    return turn.content + "<|im_end|>"


def qwen2_5(turn: Turn) -> str:
    return "\n".join([*([turn.content] if turn.content or not turn.calls else []), *_qwen_calls(turn.calls)]) + (
        "<|im_end|>"
    )


def _without_thought(content: str) -> tuple[str, str]:
    """Reasoning and answer of content, as Qwen3 and GLM take it apart."""
    if "</think>" not in content:
        return "", content
    before, after = content.split("</think>")[0], content.split("</think>")[-1]
    return before.rstrip("\n").split("<think>")[-1].lstrip("\n"), after.lstrip("\n")


def qwen3(turn: Turn) -> str:
    inside, content = _without_thought(turn.content) if not turn.reasoning else ("", turn.content)
    thought = (turn.reasoning or inside).strip("\n")
    text = content
    if turn.is_after_last_question and (thought or turn.is_last):
        text = (f"<think>\n{thought}\n</think>\n\n" if thought else "") + content.lstrip("\n")
    calls = "\n".join(_qwen_calls(turn.calls))
    return text + ("\n" if calls and content else "") + calls + "<|im_end|>"


def qwen3_6(turn: Turn) -> str:
    inside, content = ("", turn.content.strip()) if turn.reasoning else _without_thought(turn.content.strip())
    thought = (turn.reasoning or inside).strip()
    text = content
    if turn.is_after_last_question and thought:
        # With thinking on, the prompt ends with <think>.
        text = ("<think>\n" if turn.thinking_off else "") + f"{thought}\n</think>\n\n{content}"
    calls = "\n".join(
        f"<tool_call>\n<function={c['name']}>\n"
        + "".join(f"<parameter={key}>\n{_json(value)}\n</parameter>\n" for key, value in c["arguments"].items())
        + "</function>\n</tool_call>"
        for c in turn.calls
    )
    return text + ("\n\n" if calls and content.strip() else "") + calls + "<|im_end|>"


def llama3(turn: Turn) -> str:
    if turn.calls:
        return f'{{"name": "{turn.calls[0]["name"]}", "parameters": {_json(turn.calls[0]["arguments"])}}}<|eot_id|>'
    return turn.content.strip() + "<|eot_id|>"


def gemma(turn: Turn) -> str:
    return turn.content.strip() + "<end_of_turn>"


def _mistral_calls(turn: Turn, space: str) -> str:
    printed = [
        json.dumps({"name": c["name"], "arguments": c["arguments"]}, ensure_ascii=False)[:-1] + f', "id": "{c["id"]}"}}'
        for c in turn.calls
    ]
    return f"[TOOL_CALLS]{space}[" + ", ".join(printed) + "]</s>"


def mistral_v3(turn: Turn) -> str:
    return _mistral_calls(turn, " ") if turn.calls else " " + turn.content.strip() + "</s>"


def mistral_tekken(turn: Turn) -> str:
    return _mistral_calls(turn, "") if turn.calls else turn.content + "</s>"


def phi3(turn: Turn) -> str:
    return turn.content.lstrip() + "<|end|>"  # its tokens swallow the white space that follows


def deepseek(turn: Turn) -> str:
    if not turn.calls:
        return turn.content.split("</think>")[-1] + "<｜end▁of▁sentence｜>"
    printed = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{c['name']}\n```json\n{_json(c['arguments'])}\n```<｜tool▁call▁end｜>"
        for c in turn.calls
    ]
    calls = "<｜tool▁calls▁begin｜>" + "\n".join(printed) + "<｜tool▁calls▁end｜>"
    return turn.content + calls + "<｜end▁of▁sentence｜>"


def deepseek_after_tools(turn: Turn) -> str:
    """After a tool's result the template does not cut reasoning away."""
    return turn.content + "<｜end▁of▁sentence｜>"


def glm4_moe(turn: Turn) -> str:
    inside, content = _without_thought(turn.content) if not turn.reasoning else ("", turn.content)
    thought = (turn.reasoning or inside).strip()
    text = f"\n<think>{thought}</think>" if thought and turn.is_after_last_question else ""
    text += f"\n{content.strip()}" if content.strip() else ""
    for call in turn.calls:
        arguments = "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>{_json(value)}</arg_value>\n"
            for key, value in call["arguments"].items()
        )
        text += f"\n<tool_call>{call['name']}\n{arguments}</tool_call>"
    return text  # no token of its own ends a turn


def lfm2_5(turn: Turn) -> str:
    content = turn.content
    if not turn.is_after_last_question:
        content = content.split("</think>")[-1].strip() if "</think>" in content else content
    thought = f"<think>{turn.reasoning}</think>" if turn.reasoning and turn.is_after_last_question else ""
    printed = [
        f"{c['name']}(" + ", ".join(f"{k}={_python(v)}" for k, v in c["arguments"].items()) + ")" for c in turn.calls
    ]
    calls = f"<|tool_call_start|>[{', '.join(printed)}]<|tool_call_end|>" if printed else ""
    return thought + content + calls + "<|im_end|>\n"


def _python(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


# ---- the families ----

_IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_QWEN_TOOLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
_LLAMA += ("<|eot_id|>", "<|eom_id|>")
_GEMMA = ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
_MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
_MISTRAL += ("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
_PHI = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
_DEEPSEEK_PLAIN = ("<｜User｜>", "<｜Assistant｜>", *THINK)
_DEEPSEEK_PLAIN += tuple(f"<｜tool▁{x}｜>" for x in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep"))
_DEEPSEEK_PLAIN += tuple(f"<｜tool▁{x}｜>" for x in ("outputs▁begin", "outputs▁end", "output▁begin", "output▁end"))
_GLM = ("[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_GLM_PLAIN = (*THINK, *_QWEN_TOOLS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink")
_LFM = (*_IM, "<|startoftext|>", "<|tool_call_start|>", "<|tool_call_end|>")

FAMILIES = {
    family.name: family
    for family in (
        Family("chatml", chatml, _IM, None, "<|im_end|>"),
        Family("qwen2_5", qwen2_5, _IM, None, "<|im_end|>", _QWEN_TOOLS, "object"),
        Family("qwen3", qwen3, _IM, None, "<|im_end|>", (*_QWEN_TOOLS, *THINK), "either", thinks=True),
        Family("qwen3_6", qwen3_6, _IM, None, "<|im_end|>", (*_QWEN_TOOLS, *THINK), "object", thinks=True),
        Family("llama3", llama3, _LLAMA, "<|begin_of_text|>", "<|eot_id|>"),
        Family("llama3_1", llama3, _LLAMA, "<|begin_of_text|>", "<|eot_id|>", (), "object", one_call=True),
        Family("llama3_2", llama3, _LLAMA, "<|begin_of_text|>", "<|eot_id|>", (), "object", one_call=True),
        Family("gemma2", gemma, _GEMMA, "<bos>", "<eos>", ("\n\n", "\n\n\n"), system=False, kind="spaces"),
        Family("gemma3", gemma, _GEMMA, "<bos>", "<eos>", ("\n\n", "\n\n\n"), kind="spaces"),
        Family("mistral_v3", mistral_v3, _MISTRAL, "<s>", "</s>", (), "object", kind="first space"),
        Family("mistral_v3_tekken", mistral_tekken, _MISTRAL, "<s>", "</s>", (), "object"),
        Family("mistral_v7_tekken", mistral_tekken, _MISTRAL, "<s>", "</s>"),
        Family("phi3", phi3, _PHI, None, "<|endoftext|>", strips_right=True),
        Family("phi3_5", phi3, _PHI, None, "<|endoftext|>", strips_right=True),
        Family("phi4", chatml, (*_IM, "<|im_sep|>"), None, "<|im_end|>", THINK, marked=True),
        Family("deepseek_v3", deepseek, _DEEPSEEK, _DEEPSEEK[0], _DEEPSEEK[1], _DEEPSEEK_PLAIN, "text"),
        Family("deepseek_r1_distill", deepseek, _DEEPSEEK, _DEEPSEEK[0], _DEEPSEEK[1], _DEEPSEEK_PLAIN),
        Family("glm4_moe", glm4_moe, _GLM, None, "<|endoftext|>", _GLM_PLAIN, "object", thinks=True),
        Family("lfm2_5", lfm2_5, _LFM, "<|startoftext|>", "<|im_end|>", THINK, "object", thinks=True, marked=True),
    )
}


# ---- their tokenizers ----


@cache
def family_tokenizer(name: str) -> Tokenizer:
    """A small BPE of the family's kind."""
    family = FAMILIES[name]
    tokenizer = _bytes() if family.kind == "bytes" else _spaces(family.kind == "first space")
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=family.strips_right) for t in family.special]
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.plain])
    return tokenizer


def _bytes() -> Tokenizer:
    """Byte-level, as Qwen, Llama 3, Tekken, DeepSeek and others have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def _spaces(first: bool) -> Tokenizer:
    """Made from SentencePiece: spaces as ▁, unknown letters as bytes; `first`: one before the text, as Mistral v3."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if first:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    # The trainer makes special tokens of the bytes; in a model they are plain entries of its vocabulary.
    plain = json.loads(tokenizer.to_str())
    plain["added_tokens"] = plain["added_tokens"][:1]
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def make_family_folder(folder: Path, name: str) -> Path:
    """A model's folder as far as tokens are concerned."""
    family = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    family_tokenizer(name).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": family.eos, "bos_token": family.bos}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v}))
    (folder / "chat_template.jinja").write_text(family.template)
    return folder
