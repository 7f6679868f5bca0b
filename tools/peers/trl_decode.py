"""transformers.generate on CPU: `python trl_decode.py PROMPTS GROUP NEW_TOKENS MODEL_DIR`, T = 1, no early stop."""

from __future__ import annotations

import sys
import time

import torch
from prompt import QUESTION, report
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    prompts, group, new_tokens, folder = *map(int, sys.argv[1:4]), sys.argv[4]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False)
    inputs = tokenizer([text] * (prompts * group), return_tensors="pt", add_special_tokens=False)

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        found = model.generate(
            **inputs,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
        )
        assert found.shape == (prompts * group, inputs["input_ids"].shape[1] + tokens)
        return time.perf_counter() - started

    warm = [seconds(8), seconds(1)]
    report(all=[warm[0], seconds(new_tokens)], first=[warm[1], seconds(1)])


if __name__ == "__main__":
    main()
