#!/usr/bin/env python3
"""Makes the reference files beside this script: tiny models with random weights, and what PyTorch computes with them.

    python3 -m venv VENV && VENV/bin/pip install -r requirements.txt && VENV/bin/python make.py

Every model is written as a GGUF file, whose tensors have llama.cpp's names and order, and as a folder of Hugging Face's
(config.json, model.safetensors). `NAME.expected.safetensors` holds `ids` and, for each position, the `logits` that
transformers computes in float32 on the CPU. Weights are rounded to 16 bits first, so both sides begin with the same numbers.
"""

import json
import pathlib
import shutil

import gguf
import numpy
import torch
import transformers
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
POSITIONS = 40
VOCABULARY = 288

torch.manual_seed(20)
torch.use_deterministic_algorithms(True)


def randomise(model, dtype, offset=0.0):
    """Wide enough that every part of the model shows in the logits; rounded to `dtype`."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower():
                noise = (1.0 - offset) * (not name.endswith("bias")) + 0.3 * noise
            elif name.endswith("bias"):
                noise = 0.3 * noise
            elif "embed" in name:
                pass
            else:
                noise = noise * (1.5 / parameter.shape[-1] ** 0.5)
            parameter.copy_(noise.to(dtype).float())


def llama_pairs(weight, heads):
    """GGUF files of the Llama architecture keep the two halves of a rotated pair side by side."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name, names):
    if name in names:
        return names[name]
    _, _, layer, *part, kind = name.split(".")
    return f"blk.{layer}.{names['.'.join(part)]}.{kind}"


def write_gguf(path, architecture, model, dtype, numbers, names=NAMES):
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for add, value in numbers:
        getattr(writer, add)(value)
    write_vocabulary(writer)
    tied = config.tie_word_embeddings
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        weight = parameter.float().numpy()
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = llama_pairs(weight, heads)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            weight = weight + 1.0
        if weight.ndim == 1:
            writer.add_tensor(gguf_name(name, names), weight.astype(numpy.float32))
        elif dtype == torch.float16:
            writer.add_tensor(gguf_name(name, names), weight.astype(numpy.float16))
        else:
            raw = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(gguf_name(name, names), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    if getattr(config, "rope_parameters", {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama3_factors(config):
    """How much slower each pair turns than without scaling, as llama.cpp's converter stores it."""
    rope = config.rope_parameters
    width = config.head_dim
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2).float() / width)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    return (plain / scaled).numpy().astype(numpy.float32)


def write_vocabulary(writer):
    """Bytes as GPT-2 shows them, then two tokens of two bytes, then control tokens: enough to load, and to chat with."""
    shown = [chr(b) for b in range(256)]
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [b for b in range(256) if b not in printable]
    for at, byte in enumerate(others):
        shown[byte] = chr(256 + at)
    controls = [f"<|control_{at}|>" for at in range(VOCABULARY - 256)]
    controls[:3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(shown + controls)
    writer.add_token_types([1] * 256 + [3] * len(controls))
    writer.add_token_merges(["Ġ Ġ"] if "ĠĠ" in shown else [])
    writer.add_eos_token_id(258)
    writer.add_chat_template(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{{ '<|im_start|>assistant\n' }}"
    )


def decoder(name, architecture, model, dtype, numbers, names=NAMES, offset=0.0):
    randomise(model, dtype, offset)
    model.eval()
    ids = torch.randint(0, VOCABULARY, (1, POSITIONS), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = model(ids).logits[0]
    save_file(
        {"ids": ids[0].numpy().astype(numpy.uint32), "logits": logits.numpy().astype(numpy.float32)},
        HERE / f"{name}.expected.safetensors",
    )
    write_gguf(HERE / f"{name}.gguf", architecture, model, dtype, numbers, names)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    print(name, "largest logit", float(logits.abs().max()))


COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    attn_implementation="eager",
)


def main():
    t = transformers
    rope = lambda theta, **more: dict(rope_theta=theta, rope_type="default") | more
    decoder(
        "llama", "llama",
        t.LlamaForCausalLM(t.LlamaConfig(**COMMON | dict(tie_word_embeddings=True), rope_parameters=rope(10_000.0))),
        torch.float16, [("add_rope_freq_base", 10_000.0), ("add_rope_dimension_count", 16)],
    )
    scaled = rope(500_000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=16)
    decoder(
        "llama3", "llama", t.LlamaForCausalLM(t.LlamaConfig(**COMMON, rope_parameters=scaled)),
        torch.bfloat16, [("add_rope_freq_base", 500_000.0), ("add_rope_dimension_count", 16)],
    )
    decoder(
        "qwen2", "qwen2", t.Qwen2ForCausalLM(t.Qwen2Config(**COMMON, rope_parameters=rope(1_000_000.0))),
        torch.float16, [("add_rope_freq_base", 1_000_000.0)],
    )
    decoder(
        "qwen3", "qwen3",
        t.Qwen3ForCausalLM(t.Qwen3Config(**COMMON, head_dim=32, rope_parameters=rope(1_000_000.0))),
        torch.bfloat16,
        [("add_rope_freq_base", 1_000_000.0), ("add_key_length", 32), ("add_value_length", 32)],
    )
    gemma = COMMON | dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=7, num_key_value_heads=1, tie_word_embeddings=True,
    )
    kinds = ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(7)]
    decoder(
        "gemma3", "gemma3",
        t.Gemma3ForCausalLM(t.Gemma3TextConfig(
            **gemma, head_dim=16, sliding_window=8, layer_types=kinds, query_pre_attn_scalar=16,
            rope_parameters=dict(full_attention=rope(1_000_000.0), sliding_attention=rope(10_000.0)),
        )),
        torch.float16,
        [("add_rope_freq_base", 1_000_000.0), ("add_key_length", 16), ("add_value_length", 16),
         ("add_sliding_window", 8)],
        GEMMA_NAMES, offset=1.0,
    )
    encoder()
    formats()


def encoder():
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, attn_implementation="eager",
    )
    model = transformers.BertModel(config, add_pooling_layer=False)
    randomise(model, torch.float32)
    model.eval()
    ids = torch.randint(0, 96, (20,), generator=torch.Generator().manual_seed(4))
    expected = {"ids": ids.numpy().astype(numpy.uint32)}
    for name, tokens in [("short", 5), ("long", 20)]:
        with torch.no_grad():
            mean = model(ids[None, :tokens]).last_hidden_state[0].mean(0)
        expected[name] = (mean / mean.norm()).numpy()
    save_file(expected, HERE / "bert.expected.safetensors")
    shutil.rmtree(HERE / "bert", ignore_errors=True)
    model.save_pretrained(HERE / "bert")


def formats():
    """One matrix of every quantised type, and its numbers as llama.cpp's Python package reads them."""
    types = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
    generator = numpy.random.default_rng(5)
    writer = gguf.GGUFWriter(HERE / "formats.gguf", "llama")
    expected = {}
    for name in types:
        kind = gguf.GGMLQuantizationType[name]
        weight = generator.standard_normal((8, 256)).astype(numpy.float32)
        if name.endswith("_K"):
            raw = random_blocks(name, generator, 8)
        else:
            raw = gguf.quants.quantize(weight, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        expected[name] = gguf.quants.dequantize(raw, kind).astype(numpy.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, HERE / "formats.expected.safetensors")


def random_blocks(name, generator, blocks):
    """The Python package cannot quantise to these types, only read them: any bits with small scales are a block."""
    size = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}[name]
    raw = generator.integers(0, 256, (blocks, size), dtype=numpy.uint8)
    scale = lambda: (generator.random(blocks) * 0.02 + 0.01).astype(numpy.float16).view(numpy.uint8).reshape(blocks, 2)
    if name == "Q6_K":
        raw[:, 208:210] = scale()
    else:
        raw[:, 0:2] = scale()
        raw[:, 2:4] = scale()
    return raw


if __name__ == "__main__":
    main()
