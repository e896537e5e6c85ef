//! Reads from a component what it imports, exports and needs, without compiling or running it.

use wasmparser::{ComponentExternalKind, Encoding, Instance, Parser, Payload};

use crate::error::{PluginError, printable};
use crate::facts::Steps;
use crate::interface;

/// Imports or exports at the top of a component; a policy has some ten.
const MAX_NAMES: usize = 1_000;

/// What a component says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// The steps that it takes part in.
    pub steps: Steps,
    /// Does it want to be made ready when it is loaded?
    pub startup: bool,
    /// The names of all its imports.
    pub imports: Vec<String>,
    /// The names of all its exports.
    pub exports: Vec<String>,
    /// Imports that are answered by nothing: of WASI.
    pub stubs: Vec<String>,
    /// What it takes of a sandbox.
    pub needs: Needs,
}

/// What an instance of a component takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Needs {
    /// Core instances: modules that are put together.
    pub instances: u32,
    /// Linear memories.
    pub memories: u32,
    /// Tables of functions.
    pub tables: u32,
    /// Elements of all tables at the start.
    pub table_elements: u64,
}

/// Looks into a component. Modules that are put into one more than once are counted once; the sandbox counts again.
///
/// # Errors
/// [`PluginError::NotAComponent`], [`PluginError::UnknownImport`], [`PluginError::OtherVersion`], [`PluginError::NoSteps`].
pub fn inspect(component: &[u8]) -> Result<Inspection, PluginError> {
    let mut found = Inspection::default();
    // Of what is inside: modules, and components that a component is made of.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(malformed)? {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                return Err(PluginError::NotAComponent("it is a core module".to_owned()));
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(imports) if depth == 0 => {
                for import in imports {
                    note(&mut found.imports, import.map_err(malformed)?.name.name)?;
                }
            }
            Payload::ComponentExportSection(exports) if depth == 0 => {
                for export in exports {
                    let export = export.map_err(malformed)?;
                    if export.kind == ComponentExternalKind::Instance {
                        note(&mut found.exports, export.name.name)?;
                    }
                }
            }
            payload => found.needs.count(payload).map_err(malformed)?,
        }
    }
    for import in &found.imports {
        if interface::import(import, &interface::OFFERED)? == interface::Import::Wasi {
            found.stubs.push(import.clone());
        }
    }
    (found.steps, found.startup) = interface::exports(found.exports.iter().map(String::as_str), &interface::OFFERED)?;
    Ok(found)
}

impl Needs {
    fn count(&mut self, payload: Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::InstanceSection(instances) => {
                for instance in instances {
                    if let Instance::Instantiate { .. } = instance? {
                        self.instances = self.instances.saturating_add(1);
                    }
                }
            }
            Payload::MemorySection(memories) => self.memories = self.memories.saturating_add(memories.count()),
            Payload::TableSection(tables) => {
                for table in tables {
                    self.tables = self.tables.saturating_add(1);
                    self.table_elements = self.table_elements.saturating_add(table?.ty.initial);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn note(names: &mut Vec<String>, name: &str) -> Result<(), PluginError> {
    if names.len() >= MAX_NAMES {
        return Err(PluginError::NotAComponent(format!("more than {MAX_NAMES} imports or exports")));
    }
    names.push(name.to_owned());
    Ok(())
}

fn malformed(error: wasmparser::BinaryReaderError) -> PluginError {
    PluginError::NotAComponent(printable(&error.to_string(), 300))
}
