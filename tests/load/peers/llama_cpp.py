"""llama.cpp on a GGUF file: a prompt of 512 tokens, and answers of 64 tokens to prompts of 8, at 1, 8 and 32 at a time in one
batch, in tokens a second: python llama_cpp.py MODEL.gguf THREADS

The likeliest token is taken each time, and no answer ends early. No text is made, and nothing is served.
"""

import json
import sys
import time

import numpy
from llama_cpp_py_sync import Llama

PROMPT_TOKENS, SHORT_PROMPT_TOKENS, ANSWER_TOKENS = 512, 8, 64


class Sequences:
    """Answers side by side, with room for `tokens` tokens each."""

    def __init__(self, model, threads, count, tokens):
        room = -(-tokens // 256) * 256
        batch = max(count * SHORT_PROMPT_TOKENS, tokens)
        self.llama = Llama(model, n_ctx=count * room, n_batch=batch, n_seq_max=count, n_gpu_layers=0, n_threads=threads,
                           n_threads_batch=threads, verbose=False)
        self.lib, self.ffi, self.count = self.llama._lib, self.llama._ffi, count
        # The package asks for embeddings, and with them llama.cpp computes the logits of every token of a prompt.
        self.lib.llama_set_embeddings(self.llama._ctx, False)
        self.batch = self.lib.llama_batch_init(batch, 0, 1)

    def step(self, tokens, position):
        """Takes the tokens of each sequence, which begin at a position; returns the token after each one's last."""
        batch, row, last = self.batch, 0, []
        for sequence, own in enumerate(tokens):
            for at, token in enumerate(own):
                batch.token[row], batch.pos[row] = token, position + at
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
                batch.logits[row] = at + 1 == len(own)
                row += 1
            last.append(row - 1)
        batch.n_tokens = row
        failed = self.lib.llama_decode(self.llama._ctx, batch)
        if failed:
            raise RuntimeError(f"llama_decode of {row} tokens ended with {failed}")
        return [[self.likeliest(row)] for row in last]

    def likeliest(self, row):
        pointer = self.lib.llama_get_logits_ith(self.llama._ctx, row)
        return int(numpy.frombuffer(self.ffi.buffer(pointer, 4 * self.llama.n_vocab), dtype=numpy.float32).argmax())

    def seconds(self, prompt_tokens, answer_tokens):
        """From asking to the end of all answers."""
        self.llama._clear_context_state()
        said = [[100 + (at * 7919 + sequence * 104_729) % 40_000 for at in range(prompt_tokens)]
                for sequence in range(self.count)]
        begun, position = time.perf_counter(), 0
        for _ in range(answer_tokens):
            said, position = self.step(said, position), position + len(said[0])
        return time.perf_counter() - begun


def main(model, threads):
    result = {}
    prompt = Sequences(model, int(threads), 1, PROMPT_TOKENS)
    # The first time pays for memory that is touched first.
    prompt.seconds(PROMPT_TOKENS, 1)
    result["prompt_512"] = round(PROMPT_TOKENS / prompt.seconds(PROMPT_TOKENS, 1), 2)
    for count in (1, 8, 32):
        sequences = Sequences(model, int(threads), count, SHORT_PROMPT_TOKENS + ANSWER_TOKENS)
        sequences.seconds(SHORT_PROMPT_TOKENS, 2)
        took = sequences.seconds(SHORT_PROMPT_TOKENS, ANSWER_TOKENS)
        result[f"streams_{count}"] = round(count * ANSWER_TOKENS / took, 2)
    print(json.dumps(result))


main(*sys.argv[1:])
