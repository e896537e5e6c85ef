//! `postern-componentize CORE.wasm COMPONENT.wasm [WORLD] [--manifest FILE]`: the last step of building a policy, after the
//! compiler. `postern plugin pack` is the same for authors; this builds what comes along with Postern.

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: postern-componentize CORE.wasm COMPONENT.wasm [WORLD] [--manifest FILE]";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (rest, manifest) = match arguments.as_slice() {
        [rest @ .., "--manifest", manifest] => (rest, Some(*manifest)),
        all => (all, None),
    };
    let done = match rest {
        [from, to] => build(from, to, None, manifest),
        [from, to, world] => build(from, to, Some(world), manifest),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("postern-componentize: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build(from: &str, to: &str, world: Option<&str>, manifest: Option<&str>) -> Result<(), String> {
    let named = |path: &str, error: &dyn std::fmt::Display| format!("{}: {error}", Path::new(path).display());
    let module = std::fs::read(from).map_err(|error| named(from, &error))?;
    let made = match manifest {
        Some(manifest) => {
            let text = std::fs::read_to_string(manifest).map_err(|error| named(manifest, &error))?;
            postern_plugins::pack(&module, &text, world)
        }
        None => postern_plugins::componentize(&module, world),
    };
    std::fs::write(to, made.map_err(|error| named(from, &error))?).map_err(|error| named(to, &error))
}
