#!/usr/bin/env python3
"""What llama.cpp says of a model file: token ids of texts, and greedy answers with the margin of every choice.

    python3 -m venv VENV && VENV/bin/pip install llama-cpp-py-sync && VENV/bin/python make.py MODEL.gguf OUT.json

Each token of an answer comes with the runner-up and how far its logit is behind: where that is little, another order of
rounding may choose otherwise.
"""

import json
import sys

import numpy
from llama_cpp_py_sync import Llama

ANSWER_TOKENS = 32
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n):\n    ",
    "The three primary colours are red,",
    "Water boils at 100 degrees",
    "To make a good cup of tea, first",
    "In 1969, the first humans",
    "Dear Sir or Madam,\n\nI am writing to",
    "The sum of the angles of a triangle is",
    "Die Hauptstadt von Deutschland ist",
]
TEXTS = [
    "Hello, world!",
    "  two spaces,   three, and\ttabs\n\nand lines\r\n",
    "naïve café – Zürich, Łódź, Ελλάδα, Привет",
    "東京は日本の首都です。 한국어 العربية हिन्दी",
    "🏔️🇨🇭👩‍👩‍👧‍👦 emoji",
    "x = 12345.678 + 0x1F; // it's 2026-11-26",
    "I'll we've they're don't CAN'T",
    "a" * 50 + " " * 20 + "\n" * 5,
    "<html><body class=\"x\">&amp;</body></html>",
    "",
    "▁underscore▁",
]


def logits_after(llama, tokens, n_past):
    llama._eval_tokens(tokens, n_past)
    pointer = llama._lib.llama_get_logits_ith(llama._ctx, -1)
    return numpy.frombuffer(llama._ffi.buffer(pointer, 4 * llama.n_vocab), dtype=numpy.float32).copy()


def greedy(llama, tokens):
    llama._clear_context_state()
    logits, n_past, answer = logits_after(llama, tokens, 0), len(tokens), []
    for _ in range(ANSWER_TOKENS):
        second, best = (int(token) for token in numpy.argsort(logits)[-2:])
        answer.append([best, second, round(float(logits[best] - logits[second]), 4)])
        logits = logits_after(llama, [best], n_past)
        n_past += 1
    return answer


def main(model, out):
    llama = Llama(model, n_ctx=512, n_gpu_layers=0, n_threads=1, n_threads_batch=1, verbose=False)
    texts = [[text, llama.tokenize(text, add_special=False, parse_special=False)] for text in TEXTS]
    answers = []
    for prompt in PROMPTS:
        tokens = llama.tokenize(prompt, add_special=True, parse_special=False)
        answers.append({"prompt": prompt, "ids": tokens, "answer": greedy(llama, tokens)})
    lines = ",\n".join(json.dumps(answer, ensure_ascii=False) for answer in answers)
    with open(out, "w") as file:
        file.write('{"texts": ' + json.dumps(texts, ensure_ascii=False) + ',\n"greedy": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
