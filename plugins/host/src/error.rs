//! What goes wrong when a policy is loaded, and when it is asked.

use thiserror::Error;

use crate::inspect::Needs;
use crate::policy::{MAX_CODE_BYTES, MAX_FUNCTION_BYTES};
use crate::signature::KeyId;

/// `detail` of a failure is cut to this many bytes.
pub const MAX_DETAIL_BYTES: usize = 500;

/// Why a policy cannot be used at all. The operator is at fault, or the author of the plugin; no use to retry.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PluginError {
    /// The sandbox cannot be set up: most likely too little address space, or a cache folder that cannot be written.
    #[error("the sandbox cannot be set up: {0}")]
    Sandbox(String),
    /// The file is not a component, or uses a WebAssembly proposal that is off here.
    #[error("not a WebAssembly component that can run here: {0}")]
    NotAComponent(String),
    /// It asks for something that Postern does not give.
    #[error(
        "imports `{0}`, which Postern does not offer (it offers log, config, detectors, counters, metrics, clock and random of \
         postern:policy@1.0.0, and the functions of WASI 0.2 with nothing behind them)"
    )]
    UnknownImport(String),
    /// It was made for an interface that this Postern does not have yet, or no longer has.
    #[error(
        "was made for `{0}`, and this Postern offers postern:policy@1.0.0: use a Postern that offers it, or build the plugin \
         against this interface"
    )]
    OtherVersion(String),
    /// A function is too long to be compiled in a time that anybody would wait.
    #[error(
        "has a function of {0} bytes, and {MAX_FUNCTION_BYTES} is the most; build it with optimisation, or split the function"
    )]
    LongFunction(usize),
    /// All functions together are too long for that.
    #[error("has {0} bytes of code, and {MAX_CODE_BYTES} is the most; build it for size")]
    MuchCode(usize),
    /// It needs a larger sandbox than the largest.
    #[error(
        "is too large: it has {} modules, {} memories, {} tables and {} elements in them; 43, 10, 20 and 60,000 are the most",
        .0.instances, .0.memories, .0.tables, .0.table_elements
    )]
    TooLarge(Needs),
    /// Its `startup.start` failed: what it said, or how it ended. Most often, its configuration is wrong.
    #[error("does not start: {0}")]
    Start(String),
    /// It imports one of Postern's interfaces with other types, or exports one with other types.
    #[error("does not fit postern:policy@1.0.0: {0}")]
    Mismatch(String),
    /// None of `routing`, `caching`, `redaction` is exported.
    #[error("exports none of routing, caching and redaction of postern:policy@1.0.0")]
    NoSteps,
    /// A limit of the configuration makes no sense.
    #[error("{0}")]
    Limits(String),
    /// The file is no component, is cut, damaged or too large.
    #[error("not a policy: {0}")]
    File(String),
    /// The manifest in the file is wrong, or does not fit the component.
    #[error("its manifest is wrong: {0}")]
    Manifest(String),
    /// There is no signature.
    #[error(
        "it is not signed; `postern plugin sign` does that, and `plugins: {{unsigned: allow}}` loads it all the same (development only)"
    )]
    Unsigned,
    /// There is a signature, by a key that is not trusted here.
    #[error("it is signed by the key {0}, which is none of those that are trusted (`plugins: {{keys: [...]}}`)")]
    UnknownSigner(KeyId),
    /// The signature is damaged, or the file was changed after it was signed.
    #[error("its signature is not good: {0}")]
    Signature(String),
    /// A file that should hold a key holds something else. Never says what.
    #[error("not a key that can be used: {0}")]
    Key(String),
    /// The policy's section of the configuration does not fit the schema in its manifest.
    #[error("its configuration does not fit: {0}")]
    Config(String),
    /// A core module could not be made a component.
    #[error("cannot be made a component: {0}")]
    Componentize(String),
}

/// Why a call of a policy brought no answer. The plugin is at fault; the request is not.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("policy failed ({}): {detail}", kind.name())]
pub struct PolicyFailure {
    /// What happened.
    pub kind: FailureKind,
    /// For the log, at most [`MAX_DETAIL_BYTES`]; no text of a prompt by the host. (A plugin's own error is its author's words.)
    pub detail: String,
}

/// How a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// It crashed.
    Trap,
    /// It took too long, or no instance came free in time.
    Deadline,
    /// It wanted more memory than it may have.
    Memory,
    /// It answered nonsense.
    Output,
    /// It answered with an error of its own.
    Refused,
}

impl FailureKind {
    /// The value of the label `kind` in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Refused => "refused",
        }
    }
}

impl PolicyFailure {
    /// A failure; `detail` is cut and freed of control characters.
    #[must_use]
    pub fn new(kind: FailureKind, detail: impl AsRef<str>) -> Self {
        Self { kind, detail: printable(detail.as_ref(), MAX_DETAIL_BYTES) }
    }

    /// The plugin answered something that makes no sense.
    #[must_use]
    pub fn output(detail: impl AsRef<str>) -> Self {
        Self::new(FailureKind::Output, detail)
    }
}

/// At most `max` bytes of a text that a plugin wrote, with nothing in it that could forge lines of a log.
pub(crate) fn printable(text: &str, max: usize) -> String {
    let mut kept = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if kept.len() + c.len_utf8() > max {
            break;
        }
        kept.push(c);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_bounded_and_on_one_line() {
        let failure = PolicyFailure::output("ä\n".repeat(1000));
        assert!(failure.detail.len() <= MAX_DETAIL_BYTES);
        assert!(failure.detail.len() > MAX_DETAIL_BYTES - 4);
        assert!(!failure.detail.contains('\n'));
        assert!(failure.to_string().starts_with("policy failed (output): ä "));
    }
}
