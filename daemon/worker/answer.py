"""Questions to a model through plain transformers: `python -P -m daemon.worker.answer FOLDER GOLDEN`.

It uses nothing of the training, so that what it says of a model holds for any other program that loads the folder.
GOLDEN is a JSONL file of {"messages": […], "expected": "…"}; the answers are printed as one JSON object.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LONGEST_ANSWER = 32  # tokens


def ask(folder: Path, golden: list[dict[str, Any]]) -> dict[str, Any]:
    """Each question answered greedily; an answer is right when it is what was expected, word for word."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for row in golden:
        prompt: Any = tokenizer.apply_chat_template(
            row["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            tokens = model.generate(**prompt, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        own = tokens[0, prompt["input_ids"].shape[1] :]
        answer = str(tokenizer.decode(own, skip_special_tokens=True)).strip()
        answers.append(
            {
                "prompt": row["messages"][-1]["content"],
                "expected": row["expected"],
                "answer": answer,
                "right": answer == row["expected"],
            }
        )
    return {"answers": answers, "right": sum(a["right"] for a in answers), "total": len(answers)}


if __name__ == "__main__":
    lines = Path(sys.argv[2]).read_text().splitlines()
    print(json.dumps(ask(Path(sys.argv[1]), [json.loads(line) for line in lines if line.strip()]), ensure_ascii=False))
