//! `config.json` of Hugging Face's transformers, put under the names that GGUF files have for the same things.
//!
//! Whatever would change the computation and is not known here is refused: no model computes something else quietly.

use serde_json::Value as Json;

use super::folder::{ROTATES_HALVES, set};
use super::gguf::{Header, Value};

/// Fills the header, and gives the architecture's name.
pub(super) fn translate(config: &Json, header: &mut Header) -> Result<&'static str, String> {
    let kind = text(config, "model_type").ok_or("`model_type` is missing in config.json")?;
    let architecture = match kind {
        "llama" => "llama",
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        "gemma3" | "gemma3_text" => "gemma3",
        "bert" => "bert",
        other => return Err(format!("it asks for the architecture `{other}`, which this engine does not support yet")),
    };
    // Models that also see pictures keep their decoder's numbers a level further in.
    let config = config.get("text_config").unwrap_or(config);
    set(header, "general.architecture", Value::Text(architecture.to_owned()));
    set(header, ROTATES_HALVES, Value::Bool(true));
    let mut target = Target { config, header, architecture };
    target.sizes();
    match architecture {
        "bert" => target.bert()?,
        _ => target.decoder()?,
    }
    Ok(architecture)
}

struct Target<'a> {
    config: &'a Json,
    header: &'a mut Header,
    architecture: &'static str,
}

impl Target<'_> {
    fn sizes(&mut self) {
        for (theirs, ours) in [
            ("hidden_size", "embedding_length"),
            ("intermediate_size", "feed_forward_length"),
            ("num_hidden_layers", "block_count"),
            ("num_attention_heads", "attention.head_count"),
            ("num_key_value_heads", "attention.head_count_kv"),
            ("head_dim", "attention.key_length"),
            ("max_position_embeddings", "context_length"),
            ("vocab_size", "vocab_size"),
        ] {
            if let Some(number) = self.config.get(theirs).and_then(Json::as_u64) {
                self.set(ours, Value::Unsigned(number));
            }
        }
    }

    fn decoder(&mut self) -> Result<(), String> {
        let gemma = self.architecture == "gemma3";
        let activation = text(self.config, "hidden_activation").or_else(|| text(self.config, "hidden_act"));
        let expected = if gemma { "gelu_pytorch_tanh" } else { "silu" };
        if activation.is_some_and(|given| given != expected) {
            return Err(format!("its activation is not `{expected}`"));
        }
        if self.config.get("use_sliding_window").and_then(Json::as_bool) == Some(true) {
            return Err("it asks for a sliding window in some layers, which is not supported".to_owned());
        }
        self.float("rms_norm_eps", "attention.layer_norm_rms_epsilon");
        if gemma { self.gemma() } else { self.rope(&Json::Null) }
    }

    fn gemma(&mut self) -> Result<(), String> {
        self.float("query_pre_attn_scalar", "attention.query_scalar");
        self.float("attn_logit_softcapping", "attn_logit_softcapping");
        self.float("final_logit_softcapping", "final_logit_softcapping");
        self.float("rope_local_base_freq", "rope.freq_base_swa");
        if let Some(window) = self.config.get("sliding_window").and_then(Json::as_u64) {
            self.set("attention.sliding_window", Value::Unsigned(window));
        }
        if let Some(kinds) = self.config.get("layer_types").and_then(Json::as_array) {
            let full: Vec<bool> = kinds.iter().map(|kind| kind.as_str() == Some("full_attention")).collect();
            let pattern = full.iter().position(|full| *full).map_or(full.len() + 1, |at| at + 1);
            let regular = full.iter().enumerate().all(|(at, full)| *full == (at % pattern == pattern - 1));
            if !regular {
                return Err("its layers' kinds follow no pattern".to_owned());
            }
            self.set("attention.sliding_window_pattern", Value::Unsigned(pattern as u64));
        }
        let rope = self.config.get("rope_parameters").cloned().unwrap_or(Json::Null);
        let local = rope.get("sliding_attention").cloned().unwrap_or(Json::Null);
        if let Some(base) = local.get("rope_theta").and_then(Json::as_f64) {
            self.set("rope.freq_base_swa", Value::Float(base));
        }
        self.rope(rope.get("full_attention").unwrap_or(&Json::Null))
    }

    /// Rotation: `rope_parameters` of newer files, `rope_theta` and `rope_scaling` of older ones.
    fn rope(&mut self, given: &Json) -> Result<(), String> {
        let config = self.config;
        let parameters = if given.is_null() { config.get("rope_parameters").unwrap_or(&Json::Null) } else { given };
        let scaling = config.get("rope_scaling").filter(|scaling| scaling.is_object()).unwrap_or(parameters);
        let base = parameters.get("rope_theta").or_else(|| config.get("rope_theta")).and_then(Json::as_f64);
        let base = base.unwrap_or(10_000.0);
        self.set("rope.freq_base", Value::Float(base));
        match text(scaling, "rope_type").or_else(|| text(scaling, "type")) {
            None | Some("default") => Ok(()),
            Some("linear") => {
                let factor = scaling.get("factor").and_then(Json::as_f64).ok_or("its rotations' factor is missing")?;
                self.set("rope.scaling.type", Value::Text("linear".to_owned()));
                self.set("rope.scaling.factor", Value::Float(factor));
                Ok(())
            }
            Some("llama3") => {
                let factors = self.llama3_factors(scaling, base).ok_or("its rotations' factors are missing")?;
                self.set("rope.factors", Value::Floats(factors));
                Ok(())
            }
            Some(other) => Err(format!("it asks for rotary positions scaled by `{other}`, which is not supported")),
        }
    }

    /// How much slower each pair turns: long waves by the factor, short ones not at all, those between in proportion.
    /// Source: Llama 3.1's reference implementation, as in transformers' `modeling_rope_utils.py`.
    fn llama3_factors(&self, scaling: &Json, base: f64) -> Option<Vec<f32>> {
        let number = |key: &str| scaling.get(key).and_then(Json::as_f64).filter(|number| *number > 0.0);
        let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
        let context = number("original_max_position_embeddings")?;
        let size = |key: &str| self.config.get(key).and_then(Json::as_u64);
        let width = size("head_dim").or_else(|| size("hidden_size")?.checked_div(size("num_attention_heads")?))?;
        if width > 1024 {
            return None;
        }
        let slowed = |pair: u64| {
            let wave = std::f64::consts::TAU * base.powf(2.0 * pair as f64 / width as f64);
            if wave < context / high {
                return 1.0;
            }
            if wave > context / low {
                return factor as f32;
            }
            let share = (context / wave - low) / (high - low);
            (1.0 / ((1.0 - share) / factor + share)) as f32
        };
        Some((0..width / 2).map(slowed).collect())
    }

    fn bert(&mut self) -> Result<(), String> {
        if text(self.config, "hidden_act").is_some_and(|given| given != "gelu") {
            return Err("its activation is not `gelu`".to_owned());
        }
        if text(self.config, "position_embedding_type").is_some_and(|given| given != "absolute") {
            return Err("its positions are not absolute".to_owned());
        }
        self.float("layer_norm_eps", "attention.layer_norm_epsilon");
        Ok(())
    }

    fn float(&mut self, theirs: &str, ours: &str) {
        if let Some(number) = self.config.get(theirs).and_then(Json::as_f64) {
            self.set(ours, Value::Float(number));
        }
    }

    fn set(&mut self, key: &str, value: Value) {
        set(self.header, format!("{}.{key}", self.architecture), value);
    }
}

fn text<'a>(json: &'a Json, key: &str) -> Option<&'a str> {
    json.get(key)?.as_str()
}
