//! What a component is made of, told from its file without compiling it.

use std::collections::BTreeSet;

use serde::Serialize;
use wasmparser::{Parser, Payload};

use crate::error::PluginError;

/// Names of imports and exports that are kept.
const MAX_NAMES: usize = 256;
const MAX_NAME_BYTES: usize = 256;
const PAGE_BYTES: u64 = 64 << 10;

const PACKAGE: &str = "postern:policy/";
/// The interfaces that a policy may export.
pub(crate) const INTERFACES: [&str; 4] = ["routing", "caching", "redaction", "startup"];

/// What a component exports, imports and needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Full names of what it exports, such as `postern:policy/routing@1.0.0`.
    pub exports: BTreeSet<String>,
    /// Full names of what it imports.
    pub imports: BTreeSet<String>,
    /// Core modules in it.
    pub modules: usize,
    /// Memory that its modules begin with, in bytes.
    pub memory_bytes: u64,
    /// Elements that the tables of its modules begin with.
    pub table_elements: u64,
}

impl Shape {
    /// Looks through a component.
    ///
    /// # Errors
    /// [`PluginError::File`]: a part of it cannot be read, or it has more than 256 imports or exports.
    pub(crate) fn of(component: &[u8]) -> Result<Self, PluginError> {
        let mut shape = Self::default();
        // What is inside of something nested is not an import or export of the whole.
        let mut level = 0_usize;
        for payload in Parser::new(0).parse_all(component) {
            match payload.map_err(unreadable)? {
                Payload::Version { .. } => level += 1,
                Payload::End(_) => level = level.saturating_sub(1),
                Payload::ModuleSection { .. } => shape.modules += 1,
                Payload::ComponentImportSection(imports) if level == 1 => {
                    for import in imports {
                        keep(&mut shape.imports, import.map_err(unreadable)?.name.name)?;
                    }
                }
                Payload::ComponentExportSection(exports) if level == 1 => {
                    for export in exports {
                        keep(&mut shape.exports, export.map_err(unreadable)?.name.name)?;
                    }
                }
                Payload::MemorySection(memories) => {
                    for memory in memories {
                        let bytes = memory.map_err(unreadable)?.initial.saturating_mul(PAGE_BYTES);
                        shape.memory_bytes = shape.memory_bytes.saturating_add(bytes);
                    }
                }
                Payload::TableSection(tables) => {
                    for table in tables {
                        let elements = table.map_err(unreadable)?.ty.initial;
                        shape.table_elements = shape.table_elements.saturating_add(elements);
                    }
                }
                _ => {}
            }
        }
        Ok(shape)
    }

    /// The interfaces of `postern:policy` in version 1 that it exports, in short: `routing`, `startup`, …
    #[must_use]
    pub fn interfaces(&self) -> BTreeSet<String> {
        let short = |name: &String| {
            let (name, version) = name.strip_prefix(PACKAGE)?.split_once('@')?;
            (version.starts_with("1.") && INTERFACES.contains(&name)).then(|| name.to_owned())
        };
        self.exports.iter().filter_map(short).collect()
    }
}

fn keep(names: &mut BTreeSet<String>, name: &str) -> Result<(), PluginError> {
    if names.len() >= MAX_NAMES || name.len() > MAX_NAME_BYTES {
        let what = format!("more than {MAX_NAMES} imports or exports, or a name of more than {MAX_NAME_BYTES} bytes");
        return Err(PluginError::File(what));
    }
    names.insert(name.to_owned());
    Ok(())
}

fn unreadable(error: wasmparser::BinaryReaderError) -> PluginError {
    PluginError::File(format!("it is damaged at byte {}: {}", error.offset(), error.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_at_the_top_counts() {
        let component = wat::parse_str(
            r#"(component
                (import "postern:policy/log@1.0.0" (instance))
                (core module (memory 3) (table 7 funcref))
                (component
                    (import "wasi:cli/environment@0.2.0" (instance))
                    (core module (memory 1) (import "x" "y" (memory 9))))
                (instance $i)
                (export "postern:policy/routing@1.2.0" (instance $i))
                (export "postern:policy/startup@1.0.0" (instance $i))
                (export "postern:policy/caching@2.0.0" (instance $i))
                (export "other:policy/redaction@1.0.0" (instance $i)))"#,
        );
        let shape = Shape::of(&component.unwrap()).unwrap();
        assert_eq!(shape.imports.iter().collect::<Vec<_>>(), ["postern:policy/log@1.0.0"]);
        assert_eq!(shape.exports.len(), 4);
        assert_eq!(shape.interfaces().iter().collect::<Vec<_>>(), ["routing", "startup"]);
        assert_eq!((shape.modules, shape.memory_bytes, shape.table_elements), (2, 4 << 16, 7));
    }
}
