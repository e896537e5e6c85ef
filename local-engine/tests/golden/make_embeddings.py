#!/usr/bin/env python3
"""What transformers computes with a sentence encoder: token ids and the mean of all tokens, scaled to length 1.

    python3 -m venv VENV && VENV/bin/pip install torch transformers && VENV/bin/python make_embeddings.py FOLDER OUT.json
"""

import json
import sys

import torch
import transformers

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "a",
    "Zürich, naïve café: 東京 — 12,345.67 €!",
    "An [SEP] in a text is no separator.",
    "How do I renew a certificate before it expires? " * 8,
]


def main(folder, out):
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    cases = []
    for text in TEXTS:
        ids = plain_ids(tokenizer, text)
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        vector = [round(number, 6) for number in (mean / mean.norm()).tolist()]
        cases.append({"text": text, "ids": ids, "vector": vector})
    with open(out, "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n")


def plain_ids(tokenizer, text):
    """Without special tokens in the text: what spells one is read as words."""
    pieces = []
    backend = tokenizer.backend_tokenizer
    for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
        pieces += [token.id for token in backend.model.tokenize(word)]
    return [tokenizer.cls_token_id, *pieces, tokenizer.sep_token_id]


if __name__ == "__main__":
    main(*sys.argv[1:])
