//! Tensors' names: from Hugging Face's to those of GGUF files.

/// The name in a GGUF file; `None` for what no model here needs.
pub(super) fn gguf_name(name: &str, architecture: &str) -> Option<String> {
    if architecture == "bert" {
        return of_bert(name);
    }
    // Models that also see pictures keep their decoder a level further in.
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    let name = name.strip_prefix("model.language_model.").or_else(|| name.strip_prefix("model.")).unwrap_or(name);
    match name {
        "embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "norm.weight" => return Some("output_norm.weight".to_owned()),
        "lm_head.weight" => return Some("output.weight".to_owned()),
        _ => {}
    }
    let (layer, part, kind) = of_layer(name.strip_prefix("layers.")?)?;
    let gemma = architecture == "gemma3";
    let known = match part {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" if gemma => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        _ => return None,
    };
    Some(format!("blk.{layer}.{known}.{kind}"))
}

fn of_bert(name: &str) -> Option<String> {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    let known = match name {
        "embeddings.word_embeddings.weight" => "token_embd.weight",
        "embeddings.position_embeddings.weight" => "position_embd.weight",
        "embeddings.token_type_embeddings.weight" => "token_types.weight",
        "embeddings.LayerNorm.weight" => "token_embd_norm.weight",
        "embeddings.LayerNorm.bias" => "token_embd_norm.bias",
        _ => "",
    };
    if !known.is_empty() {
        return Some(known.to_owned());
    }
    let (layer, part, kind) = of_layer(name.strip_prefix("encoder.layer.")?)?;
    let known = match part {
        "attention.self.query" => "attn_q",
        "attention.self.key" => "attn_k",
        "attention.self.value" => "attn_v",
        "attention.output.dense" => "attn_output",
        "attention.output.LayerNorm" => "attn_output_norm",
        "intermediate.dense" => "ffn_up",
        "output.dense" => "ffn_down",
        "output.LayerNorm" => "layer_output_norm",
        _ => return None,
    };
    Some(format!("blk.{layer}.{known}.{kind}"))
}

/// `3.mlp.up_proj.weight` is layer 3, `mlp.up_proj`, `weight`.
fn of_layer(name: &str) -> Option<(usize, &str, &str)> {
    let (layer, rest) = name.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    Some((layer.parse().ok()?, part, kind)).filter(|(_, _, kind)| matches!(*kind, "weight" | "bias"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_gguf_files() {
        for (theirs, architecture, ours) in [
            ("model.embed_tokens.weight", "llama", "token_embd.weight"),
            ("model.layers.12.self_attn.q_proj.bias", "qwen2", "blk.12.attn_q.bias"),
            ("model.layers.0.post_attention_layernorm.weight", "qwen3", "blk.0.ffn_norm.weight"),
            ("model.layers.0.post_attention_layernorm.weight", "gemma3", "blk.0.post_attention_norm.weight"),
            ("language_model.model.layers.1.mlp.up_proj.weight", "gemma3", "blk.1.ffn_up.weight"),
            ("encoder.layer.5.output.LayerNorm.bias", "bert", "blk.5.layer_output_norm.bias"),
        ] {
            assert_eq!(gguf_name(theirs, architecture).as_deref(), Some(ours), "{theirs}");
        }
        assert_eq!(gguf_name("model.layers.0.self_attn.rotary_emb.inv_freq", "llama"), None);
        assert_eq!(gguf_name("vision_tower.layers.0.mlp.up_proj.weight", "gemma3"), None);
        assert_eq!(gguf_name("model.layers.x.mlp.up_proj.weight", "llama"), None);
    }
}
