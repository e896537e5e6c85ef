//! From a core WebAssembly module, which is what compilers make for `wasm32-unknown-unknown`, to a component.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, SourceMap};

use crate::error::PluginError;

/// The interface that policies are written against, in the files of `plugins/wit`.
const WIT: [(&str, &str); 4] = [
    ("types.wit", include_str!("../../wit/types.wit")),
    ("imports.wit", include_str!("../../wit/imports.wit")),
    ("exports.wit", include_str!("../../wit/exports.wit")),
    ("worlds.wit", include_str!("../../wit/worlds.wit")),
];

/// Makes a component of a core module. Modules that wit-bindgen made say themselves which world they are for; for others
/// (C, Zig, WebAssembly text) name it: `routing-policy`, `caching-policy`, `redaction-policy` or `full-policy`.
///
/// # Errors
/// [`PluginError::Componentize`]: not a module; no such world; or imports and exports that do not fit the world.
pub fn componentize(module: &[u8], world: Option<&str>) -> Result<Vec<u8>, PluginError> {
    let mut module = module.to_vec();
    if let Some(world) = world {
        embed(&mut module, world)?;
    }
    let encoder = ComponentEncoder::default().validate(true).module(&module);
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|error| failed(format!("{error:#}")))
}

/// Says in the module which world it is for, as wit-bindgen does.
fn embed(module: &mut Vec<u8>, world: &str) -> Result<(), PluginError> {
    let mut files = SourceMap::new();
    for (name, text) in WIT {
        files.push_str(name, text);
    }
    let package = files.parse().map_err(|(_, error)| failed(error))?;
    let mut resolve = Resolve::default();
    let package = resolve.push_group(package).map_err(failed)?;
    let world = resolve.select_world(&[package], Some(world)).map_err(failed)?;
    embed_component_metadata(module, &resolve, world, StringEncoding::UTF8).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> PluginError {
    PluginError::Componentize(error.to_string())
}
