//! Policies written as WebAssembly text, and what they have in common.

use std::path::Path;

use postern_plugins::componentize;
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, SourceMap};

/// The core module of a guest: `parts`, a memory of 1 MiB, and the function through which the host hands over arguments, which
/// puts one after the other and frees nothing, since an instance lives for one call.
///
/// An answer is a pointer to its bytes, and zeroes are the plainest one: no opinion, nothing found, success. Bytes from 128 KiB
/// on stay zero.
pub(crate) fn core(imports: &str, parts: &str) -> Vec<u8> {
    let text = format!(
        r#"(module {imports}
          (memory (export "memory") 16)
          (global $free (mut i32) (i32.const 262144))
          (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
            (global.set $free (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
            (global.get $free)
            (global.set $free (i32.add (global.get $free) (local.get 3))))
          {parts})"#
    );
    wat::parse_str(text).unwrap()
}

/// A component of it, for a world of `postern:policy`.
pub(crate) fn guest(world: &str, imports: &str, parts: &str) -> Vec<u8> {
    componentize(&core(imports, parts), Some(world)).unwrap()
}

/// A caching policy whose plan says in its `ttl-seconds` what `number` (code that leaves an i32) found out. The least is 1:
/// what it found is what it says minus one.
pub(crate) fn says(world: &str, imports: &str, parts: &str, number: &str) -> Vec<u8> {
    let plan = format!(
        r#"{parts}
          (func (export "postern:policy/caching@1.0.0#plan") (param i32) (result i32)
            (i32.store8 (i32.const 131080) (i32.const 1))
            (i32.store (i32.const 131084) {number})
            (i32.const 131072))"#
    );
    guest(world, imports, &plan)
}

/// The component, and in it also so many instances of another module, which have nothing to do with it.
pub(crate) fn with_instances(mut component: Vec<u8>, module: &str, count: u8) -> Vec<u8> {
    let mut depth = 0;
    let mut modules = 0;
    for payload in Parser::new(0).parse_all(&component) {
        match payload.unwrap() {
            Payload::ModuleSection { .. } if depth == 0 => (depth, modules) = (1, modules + 1),
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= i32::from(depth > 0),
            _ => {}
        }
    }
    // After the eight bytes in front: the module as a section, of which it is the only one.
    let alone = wat::parse_str(format!("(component {})", module.replacen("(module", "(core module", 1))).unwrap();
    component.extend_from_slice(&alone[8..]);
    for _ in 0..count {
        // A section of core instances (2), of four bytes: one, which instantiates (0) that module with no arguments.
        component.extend_from_slice(&[2, 4, 1, 0, modules, 0]);
    }
    component
}

/// The same for a world of another version of the interface: each of its files as `change` leaves it.
pub(crate) fn guest_of(change: impl Fn(&str) -> String, world: &str, imports: &str, parts: &str) -> Vec<u8> {
    let mut files = SourceMap::new();
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit")).unwrap() {
        let file = file.unwrap().path();
        files.push_str(file.to_str().unwrap(), change(&std::fs::read_to_string(&file).unwrap()));
    }
    let mut resolve = Resolve::default();
    let package = resolve.push_group(files.parse().map_err(|(_, error)| error).unwrap()).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let mut module = core(imports, parts);
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}
