"""The embedded model: a tiny Qwen3 with random weights and a tokenizer of its own, the same bytes each time.

`python -P -m daemon.worker.embedded FOLDER` writes it into FOLDER, which the caller has staged. It takes about a
second once transformers is imported, needs no network, and knows nothing until it is trained.
"""

import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SEED = 20260131
VOCABULARY = 512
TURN_START, TURN_END, PADDING = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

# ChatML. The generation marks say which characters are the assistant's own: its text and the end of its turn.
TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\nTools: ' }}{{ tools | tojson }}{{ '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}
{{- message['content'] or '' }}
{%- for call in message['tool_calls'] or [] %}
{{- '<tool_call>' }}{{ (call['function'] or call) | tojson }}{{ '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}
{%- endgeneration %}
{%- else %}
{{- (message['content'] or '') + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# What the tokenizer learns its pieces from: plain sentences with the words that questions and answers are made of.
SENTENCES = (
    "What is the name of the city? Which city is it? Where is the government of the country?",
    "The capital of the country is a city. The capital city is where the government has its seat.",
    "Tell me which town it is. Please name the largest river, the highest mountain and the nearest sea.",
    "Name the people who live there. How many are there? When did they come, and why did they stay?",
    "I think that this is right. No, that is wrong. Yes, you are right. Thank you for the question and the answer.",
    "The model reads a question and writes an answer. It learns from rows, and each row is trained as often as asked.",
    "One two three four five six seven eight nine ten. First, second, third and last. 0 1 2 3 4 5 6 7 8 9 10 100.",
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday. Morning, noon, evening and night; spring and autumn.",
    "Red, green, blue, black and white. North, south, east and west. Bread, water, salt, fish, rice, milk and honey.",
    'def answer(question): return facts[question]  # {"role": "user", "content": "text"}',
    "Write a sentence about the weather. It will rain in the afternoon, but the sun is going to shine tomorrow.",
)


def make(folder: Path) -> None:
    """Write model, tokenizer and template into an existing folder."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be written with it, and the turn marks are single tokens."""
    pieces = Tokenizer(BPE())
    pieces.pre_tokenizer = ByteLevel(add_prefix_space=False)
    pieces.decoder = ByteLevelDecoder()
    special = [AddedToken(text, special=True, normalized=False) for text in (PADDING, TURN_START, TURN_END)]
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token=TURN_END, pad_token=PADDING)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """About half a million parameters in float32."""
    ends = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,  # with the usual 0.02 it only repeats the last token; this one babbles
        use_cache=True,
        bos_token_id=None,
        eos_token_id=ends[0],
        pad_token_id=ends[1],
    )
    torch.manual_seed(SEED)
    model: Qwen3ForCausalLM = Qwen3ForCausalLM(config).float()
    model.generation_config = GenerationConfig(eos_token_id=ends[0], pad_token_id=ends[1], do_sample=False)
    return model


if __name__ == "__main__":
    make(Path(sys.argv[1]))
