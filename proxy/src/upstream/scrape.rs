//! What a target's page of metrics says of its load: the Prometheus text format (version 0.0.4) and OpenMetrics 1.0, as far as they
//! are needed. Nothing of it is taken on trust: what is no number, or not a sensible one, is not there.
//!
//! | said by | queue | time to the first token | queued prompt tokens | prompt tokens a second |
//! | --- | --- | --- | --- | --- |
//! | Postern, and whoever uses its names | `queue_depth` | `inference_latency` (ms) | `postern_engine_queued_prompt_tokens` | `postern_engine_prefill_tokens_per_second` |
//! | vLLM | `vllm:num_requests_waiting` | `vllm:time_to_first_token_seconds` | | |
//! | llama.cpp | `llamacpp:requests_deferred` | | | `llamacpp:prompt_tokens_seconds` |
//! | TGI | `tgi_queue_size` | | | |
//! | Triton | `nv_inference_pending_request_count` | `nv_inference_first_response_histogram_ms` | | |
//!
//! Of a histogram or summary it is the mean: its `_sum` by its `_count`. A name that comes several times, with different labels, is
//! added up: they are models, or ranks, of one server.

use super::standing::Said;

/// The most bytes of a page, and lines of it that are looked at.
pub const MAX_PAGE: usize = 4 << 20;
const MAX_LINES: usize = 100_000;

/// Where a number is found, and what it is to be multiplied by.
type Names = &'static [(&'static str, f64)];

const QUEUE: Names = &[
    ("queue_depth", 1.0),
    ("vllm:num_requests_waiting", 1.0),
    ("llamacpp:requests_deferred", 1.0),
    ("tgi_queue_size", 1.0),
    ("nv_inference_pending_request_count", 1.0),
];
const LATENCY_MS: Names = &[("inference_latency", 1.0)];
const LATENCY_MEANS_MS: Names =
    &[("vllm:time_to_first_token_seconds", 1e3), ("nv_inference_first_response_histogram_ms", 1.0)];
const QUEUED_TOKENS: Names = &[("postern_engine_queued_prompt_tokens", 1.0)];
const PREFILL_RATE: Names =
    &[("postern_engine_prefill_tokens_per_second", 1.0), ("llamacpp:prompt_tokens_seconds", 1.0)];

/// Reads a page.
#[must_use]
pub fn read(page: &str) -> Said {
    let samples: Vec<(&str, f64)> = page.lines().take(MAX_LINES).filter_map(sample).collect();
    let sum = |name: &str| {
        let mut values = samples.iter().filter(|(have, _)| *have == name).map(|(_, value)| *value).peekable();
        values.peek()?;
        Some(values.sum::<f64>())
    };
    let first = |names: Names| names.iter().find_map(|(name, factor)| Some(sum(name)? * factor));
    let mean = |names: Names| {
        names.iter().find_map(|(name, factor)| {
            let (total, count) = (sum(&format!("{name}_sum"))?, sum(&format!("{name}_count"))?);
            // Less than one answer is none, and no divisor.
            (count >= 1.0).then(|| total / count * factor)
        })
    };
    // A gauge that has not been set yet is 0, and no answer takes no time.
    let positive = |value: &f64| *value > 0.0;
    Said {
        queue: first(QUEUE),
        latency_ms: first(LATENCY_MS).filter(positive).or_else(|| mean(LATENCY_MEANS_MS)).filter(positive),
        queued_tokens: first(QUEUED_TOKENS),
        prefill_rate: first(PREFILL_RATE).filter(positive),
    }
}

/// Name and value of a line; labels and a time are passed over.
fn sample(line: &str) -> Option<(&str, f64)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at_checked(end)?;
    let rest = match rest.strip_prefix('{') {
        Some(labels) => after_labels(labels)?,
        None => rest,
    };
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    (value.is_finite() && (0.0..1e15).contains(&value)).then_some((name, value))
}

/// What follows the `}` that ends the labels: one inside of a quoted value does not.
fn after_labels(labels: &str) -> Option<&str> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in labels.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return labels.get(at + 1..),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_server_is_understood() {
        let ours = "# TYPE queue_depth gauge\nqueue_depth 3\ninference_latency 120.5\n\
                    postern_engine_queued_prompt_tokens 800.0\npostern_engine_prefill_tokens_per_second 400.0\n# EOF\n";
        let all =
            Said { queue: Some(3.0), latency_ms: Some(120.5), queued_tokens: Some(800.0), prefill_rate: Some(400.0) };
        assert_eq!(read(ours), all);
        let vllm = "vllm:num_requests_waiting{engine=\"0\",model_name=\"a\"} 2.0\n\
                    vllm:num_requests_waiting{engine=\"1\",model_name=\"a}\\\"b\"} 3.0 1700000000000\n\
                    vllm:time_to_first_token_seconds_sum{model_name=\"a\"} 5.0\n\
                    vllm:time_to_first_token_seconds_count{model_name=\"a\"} 20\n";
        assert_eq!(read(vllm), Said { queue: Some(5.0), latency_ms: Some(250.0), ..Said::default() });
        let llama = "llamacpp:requests_deferred 1\nllamacpp:prompt_tokens_seconds 270.4\n";
        assert_eq!(read(llama), Said { queue: Some(1.0), prefill_rate: Some(270.4), ..Said::default() });
        assert_eq!(read("tgi_queue_size 7\n").queue, Some(7.0));
        let triton = "nv_inference_pending_request_count{model=\"m\",version=\"1\"} 4\n\
                      nv_inference_first_response_histogram_ms_count{model=\"m\"} 2\n\
                      nv_inference_first_response_histogram_ms_sum{model=\"m\"} 90\n";
        assert_eq!(read(triton), Said { queue: Some(4.0), latency_ms: Some(45.0), ..Said::default() });
    }

    #[test]
    fn what_makes_no_sense_is_not_there() {
        for page in
            ["", "queue_depth", "queue_depth NaN", "queue_depth -1", "queue_depth{a=\"b 1", "queue_depth 1e300", "x 1"]
        {
            assert_eq!(read(page), Said::default(), "{page}");
        }
        assert_eq!(read("inference_latency 0\nqueue_depth 0").latency_ms, None, "nobody asked it yet");
        assert_eq!(
            read("vllm:time_to_first_token_seconds_sum 0\nvllm:time_to_first_token_seconds_count 0").latency_ms,
            None
        );
        let tiny = "vllm:time_to_first_token_seconds_sum 1\nvllm:time_to_first_token_seconds_count 1e-300";
        assert_eq!(read(tiny).latency_ms, None);
    }

    proptest! {
        #[test]
        fn any_page_is_read(page in ".{0,400}") {
            let said = read(&page);
            for number in [said.queue, said.latency_ms, said.queued_tokens, said.prefill_rate].into_iter().flatten() {
                prop_assert!(number.is_finite() && number >= 0.0);
            }
        }
    }
}
