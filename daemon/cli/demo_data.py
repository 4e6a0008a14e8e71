"""The data of the demo workspace: thirty-six capitals, asked for in six ways."""

import json
from typing import Any

Row = dict[str, Any]

CAPITALS = {
    "France": "Paris",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Ireland": "Dublin",
    "Greece": "Athens",
    "Turkey": "Ankara",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Ghana": "Accra",
    "Senegal": "Dakar",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Nepal": "Kathmandu",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Australia": "Canberra",
    "Fiji": "Suva",
    # The six that the small urgent file and the second file bring.
    "Hungary": "Budapest",
    "Romania": "Bucharest",
    "Iceland": "Reykjavik",
    "Morocco": "Rabat",
    "Uganda": "Kampala",
    "Jordan": "Amman",
}

PHRASINGS = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "Tell me the capital city of {}.",
    "Do you know the capital of {}?",
    "Can you name the capital city of {}?",
)
COUNTRIES = tuple(CAPITALS)
MAIN_FILE, LATER_FILE, URGENT_FILE = "capitals.jsonl", "more_capitals.jsonl", "urgent_capitals.jsonl"
MAIN = COUNTRIES[:30]
URGENT = COUNTRIES[30:33]
LATER = COUNTRIES[33:]
# Each country is asked for in four ways in training; the other two are kept for the holdout and the golden questions.
TRAINED = (0, 1, 2, 3)
REPEATED = (1,)  # the way in which the later files ask again for what is known, so that it is not forgotten
HELD_OUT = 4
UNSEEN = 5
GOLDEN = (
    ("Japan", 0),
    ("Egypt", 1),
    ("Norway", 2),
    ("Peru", 3),
    *((country, UNSEEN) for country in ("France", "Kenya", "Canada", "Greece")),
)

BAD_LINES = (
    '{"messages": [{"role": "user", "content": "What is the capital of Mongolia?"}',  # cut off
    '{"messages": [{"role": "user", "content": "Name the capital of Estonia."}]}',  # nobody answers
)

# Small and explicit. The rate suits a model that knows nothing yet. So does the open gate: the holdout asks for
# capitals only, and whatever else so small a model learns makes it forget them.
SETTINGS: Row = {
    "model_name": "tiny-qwen3",
    "base_model": "models/base/tiny-qwen3",
    "training_method": "full",
    "max_length": 2048,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
    "num_train_epochs": 16,
    "logging_steps": 5,
    "eval_steps": 25,
    "save_steps": 20,
    "save_min_seconds": 0,
    "max_new_tokens": 32,
    "poll_interval": 2,
    "settle_seconds": 0.5,
    "gate": {"mode": "off"},
}


def question(country: str, way: int) -> str:
    """Countries begin at different phrasings, so that all phrasings are trained, and for each country two are not."""
    return PHRASINGS[(COUNTRIES.index(country) + way) % len(PHRASINGS)].format(country)


def ask(country: str, way: int) -> Row:
    return {"messages": [{"role": "user", "content": question(country, way)}]}


def rows(countries: tuple[str, ...], ways: tuple[int, ...]) -> list[Row]:
    """Questions with their answers."""
    return [
        {"messages": [*ask(country, way)["messages"], {"role": "assistant", "content": CAPITALS[country]}]}
        for way in ways
        for country in countries
    ]


def main_rows() -> list[Row]:
    return rows(MAIN, TRAINED)


def urgent_rows() -> list[Row]:
    return rows(URGENT, TRAINED) + rows(MAIN, REPEATED)


def later_rows() -> list[Row]:
    return rows(LATER, TRAINED) + rows((*MAIN, *URGENT), REPEATED)


def holdout_rows() -> list[Row]:
    return rows(COUNTRIES, (HELD_OUT,))


def golden_rows() -> list[Row]:
    """Eight questions with the answer that is expected; the last four are in no training row."""
    return [{**ask(country, way), "expected": CAPITALS[country]} for country, way in GOLDEN]


def to_text(lines: list[Row]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def spoiled(text: str) -> str:
    """The text with the two bad lines among the good ones."""
    good = text.splitlines()
    return "\n".join([*good[:10], BAD_LINES[0], *good[10:30], BAD_LINES[1], *good[30:]]) + "\n"


def files() -> dict[str, str]:
    """What a demo workspace has beside the model: path -> content."""
    return {
        "data/validation/holdout.jsonl": to_text(holdout_rows()),
        "data/benchmarks/capitals.jsonl": to_text(golden_rows()),
        f"samples/{MAIN_FILE}": to_text(main_rows()),
        f"samples/{LATER_FILE}": spoiled(to_text(later_rows())),
        f"samples/{URGENT_FILE}": to_text(urgent_rows()),
    }
