//! Reads from a component what it imports, exports and needs, without compiling or running it.

use std::collections::BTreeSet;

use wasmparser::{ComponentExternalKind, Encoding, Instance, Parser, Payload};

use crate::error::{PluginError, printable};
use crate::facts::Steps;
use crate::interface;

/// Imports or exports at the top of a component; a policy has some ten.
const MAX_NAMES: usize = 1_000;
const PAGE_BYTES: u64 = 64 << 10;

/// What a component is made of, whether it can be loaded here or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Contents {
    /// The names of all its imports.
    pub imports: Vec<String>,
    /// The names of all its exports.
    pub exports: Vec<String>,
    /// What it takes of a sandbox.
    pub needs: Needs,
}

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
    /// Bytes of all memories at the start.
    pub memory_bytes: u64,
    /// Bytes of the longest function: what compiling it takes grows faster than it does.
    pub largest_function: usize,
    /// Bytes of all functions.
    pub code_bytes: usize,
}

impl Contents {
    /// The interfaces of `postern:policy` that it exports, by their short names: `routing`, `startup`, …
    #[must_use]
    pub fn interfaces(&self) -> BTreeSet<String> {
        self.exports.iter().filter_map(|name| interface::exported(name)).map(str::to_owned).collect()
    }
}

/// Looks into a component, and whether this host can answer its imports and ask its exports.
///
/// # Errors
/// [`PluginError::NotAComponent`], [`PluginError::UnknownImport`], [`PluginError::OtherVersion`], [`PluginError::NoSteps`].
pub fn inspect(component: &[u8]) -> Result<Inspection, PluginError> {
    let Contents { imports, exports, needs } = contents(component)?;
    let mut found = Inspection { imports, exports, needs, ..Inspection::default() };
    for import in &found.imports {
        if interface::import(import, &interface::OFFERED)? == interface::Import::Wasi {
            found.stubs.push(import.clone());
        }
    }
    (found.steps, found.startup) = interface::exports(found.exports.iter().map(String::as_str), &interface::OFFERED)?;
    Ok(found)
}

/// Looks into a component and judges nothing. Modules that are put into one more than once are counted once; the sandbox counts
/// again.
///
/// # Errors
/// [`PluginError::NotAComponent`].
pub(crate) fn contents(component: &[u8]) -> Result<Contents, PluginError> {
    let mut found = Contents::default();
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
            Payload::MemorySection(memories) => {
                for memory in memories {
                    self.memories = self.memories.saturating_add(1);
                    let bytes = memory?.initial.saturating_mul(PAGE_BYTES);
                    self.memory_bytes = self.memory_bytes.saturating_add(bytes);
                }
            }
            Payload::TableSection(tables) => {
                for table in tables {
                    self.tables = self.tables.saturating_add(1);
                    self.table_elements = self.table_elements.saturating_add(table?.ty.initial);
                }
            }
            Payload::CodeSectionEntry(body) => {
                self.largest_function = self.largest_function.max(body.range().len());
                self.code_bytes = self.code_bytes.saturating_add(body.range().len());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_at_the_top_counts_as_import_and_export() {
        let component = wat::parse_str(
            r#"(component
                (import "postern:policy/log@1.0.0" (instance))
                (core module (memory 3) (table 7 funcref))
                (component
                    (import "wasi:cli/environment@0.2.0" (instance))
                    (core module (import "x" "y" (memory 9)) (memory 1)))
                (instance $i)
                (export "postern:policy/routing@1.2.0" (instance $i))
                (export "postern:policy/startup@1.0.0" (instance $i))
                (export "postern:policy/files@1.0.0" (instance $i))
                (export "other:policy/redaction@1.0.0" (instance $i)))"#,
        );
        let component = component.unwrap();
        let found = contents(&component).unwrap();
        assert_eq!(found.imports, ["postern:policy/log@1.0.0"]);
        assert_eq!(found.exports.len(), 4);
        assert_eq!(found.interfaces().iter().collect::<Vec<_>>(), ["routing", "startup"]);
        let Needs { memories, memory_bytes, tables, table_elements, .. } = found.needs;
        assert_eq!((memories, memory_bytes, tables, table_elements), (2, 4 << 16, 1, 7));
        assert!(matches!(inspect(&component), Err(PluginError::OtherVersion(_))));
    }
}
