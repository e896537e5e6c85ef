//! `postern-componentize CORE.wasm COMPONENT.wasm [WORLD]`: the last step of building a policy, after the compiler.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let (from, to, world) = match arguments.as_slice() {
        [from, to] => (PathBuf::from(from), PathBuf::from(to), None),
        [from, to, world] => (PathBuf::from(from), PathBuf::from(to), world.to_str()),
        _ => {
            eprintln!("usage: postern-componentize CORE.wasm COMPONENT.wasm [WORLD]");
            return ExitCode::from(2);
        }
    };
    let done = std::fs::read(&from)
        .map_err(|error| format!("{}: {error}", from.display()))
        .and_then(|module| {
            postern_plugins::componentize(&module, world).map_err(|error| format!("{}: {error}", from.display()))
        })
        .and_then(|component| std::fs::write(&to, component).map_err(|error| format!("{}: {error}", to.display())));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("postern-componentize: {error}");
            ExitCode::FAILURE
        }
    }
}
