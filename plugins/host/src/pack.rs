//! From what a compiler made and a manifest in YAML to one file.

use crate::componentize::componentize;
use crate::error::PluginError;
use crate::inspect;
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::package::Package;
use crate::section;

/// Makes a policy of a core module or a component, and of its manifest as YAML (or JSON). A manifest without `interfaces` gets
/// those that the component exports. `world` as [`componentize`] has it; for a component it must be left out.
///
/// # Errors
/// [`PluginError::Manifest`] with line and column, [`PluginError::Componentize`], [`PluginError::File`].
pub fn pack(wasm: &[u8], manifest: &str, world: Option<&str>) -> Result<Vec<u8>, PluginError> {
    let component = match (section::is_module(wasm), world) {
        (true, world) => componentize(wasm, world)?,
        (false, None) => wasm.to_vec(),
        (false, Some(_)) => {
            let what = "only a core module is told its world; this is a component, which has it already";
            return Err(PluginError::Componentize(what.to_owned()));
        }
    };
    let mut manifest = from_yaml(manifest)?;
    if manifest.interfaces.is_empty() {
        manifest.interfaces = inspect::contents(&component)?.interfaces();
    }
    let file = manifest.add_to(&component)?;
    // Nobody is helped by a file that the gateway would refuse.
    Package::read(file).map(Package::into_bytes)
}

fn from_yaml(text: &str) -> Result<Manifest, PluginError> {
    if text.len() > MAX_MANIFEST_BYTES {
        let what = format!("{} bytes, and {MAX_MANIFEST_BYTES} is the most", text.len());
        return Err(PluginError::Manifest(what));
    }
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { with_snippet: false })
        .map_err(|error| PluginError::Manifest(error.to_string()))
}
