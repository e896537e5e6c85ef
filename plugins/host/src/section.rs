//! The sections of a component's file, as far as a manifest and a signature need them: where each begins and ends, and what the
//! custom ones are called (Component Model, `Binary.md`; WebAssembly core specification, 5.5). What is nested is not looked into.

use wasmparser::BinaryReader;

use crate::error::PluginError;

/// `\0asm`, version 13, layer 1.
const COMPONENT: [u8; 8] = [0x00, 0x61, 0x73, 0x6d, 0x0d, 0x00, 0x01, 0x00];
/// `\0asm`, version 1, layer 0.
const MODULE: [u8; 8] = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00];
const CUSTOM: u8 = 0;

/// One section at the top of a component.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section<'a> {
    /// Its bytes, with their heading, begin here in the file.
    pub(crate) start: usize,
    /// The byte behind its last one.
    pub(crate) end: usize,
    /// Name and content, if it is a custom one.
    pub(crate) custom: Option<(&'a str, &'a [u8])>,
}

impl Section<'_> {
    pub(crate) fn is(&self, name: &str) -> bool {
        self.custom.is_some_and(|(custom, _)| custom == name)
    }
}

/// Is it a core module, which is what compilers make?
pub(crate) fn is_module(file: &[u8]) -> bool {
    file.starts_with(&MODULE)
}

/// All sections in their order.
///
/// # Errors
/// It is not a component, or a section does not end where it says.
pub(crate) fn sections(file: &[u8]) -> Result<Sections<'_>, PluginError> {
    if is_module(file) {
        return Err(damaged("it is a core WebAssembly module; `postern plugin pack` makes it a component"));
    }
    if !file.starts_with(&COMPONENT) {
        return Err(damaged("it does not begin as a WebAssembly component does"));
    }
    Ok(Sections { file, at: COMPONENT.len() })
}

/// Goes through a file.
#[derive(Debug)]
pub(crate) struct Sections<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Sections<'a> {
    type Item = Result<Section<'a>, PluginError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.file.len() {
            return None;
        }
        let section = self.section();
        // After an error nothing more can be told apart.
        self.at = section.as_ref().map_or(self.file.len(), |section| section.end);
        Some(section)
    }
}

impl<'a> Sections<'a> {
    fn section(&self) -> Result<Section<'a>, PluginError> {
        let start = self.at;
        let broken = |_| damaged(format!("the section at byte {start} does not end within the file; is the file cut?"));
        let mut reader = BinaryReader::new(self.file.get(start..).unwrap_or_default(), 0);
        let id = reader.read_u8().map_err(broken)?;
        let content_bytes = reader.read_var_u32().map_err(broken)?;
        let content = reader.read_bytes(content_bytes as usize).map_err(broken)?;
        let end = start + reader.current_position();
        let custom = if id == CUSTOM { Some(custom(content, start)?) } else { None };
        Ok(Section { start, end, custom })
    }
}

fn custom(content: &[u8], start: usize) -> Result<(&str, &[u8]), PluginError> {
    let mut reader = BinaryReader::new(content, 0);
    let name = reader.read_string();
    let name = name.map_err(|_| damaged(format!("the name of the custom section at byte {start} cannot be read")))?;
    Ok((name, content.get(reader.current_position()..).unwrap_or_default()))
}

/// A custom section with its heading, lengths in their shortest form.
pub(crate) fn encode(name: &str, data: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(data.len() + name.len() + 5);
    leb128(name.len(), &mut content);
    content.extend_from_slice(name.as_bytes());
    content.extend_from_slice(data);
    let mut section = Vec::with_capacity(content.len() + 6);
    section.push(CUSTOM);
    leb128(content.len(), &mut section);
    section.append(&mut content);
    section
}

/// The file without its custom sections of these names.
pub(crate) fn without(file: &[u8], names: &[&str]) -> Result<Vec<u8>, PluginError> {
    let mut kept = COMPONENT.to_vec();
    for section in sections(file)? {
        let section = section?;
        if !names.iter().any(|name| section.is(name)) {
            kept.extend_from_slice(file.get(section.start..section.end).unwrap_or_default());
        }
    }
    Ok(kept)
}

fn leb128(mut value: usize, to: &mut Vec<u8>) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            to.push(low);
            return;
        }
        to.push(low | 0x80);
    }
}

fn damaged(what: impl Into<String>) -> PluginError {
    PluginError::File(what.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(file: &[u8]) -> Vec<String> {
        let all = sections(file).unwrap().map(|section| section.unwrap());
        all.filter_map(|section| Some(section.custom?.0.to_owned())).collect()
    }

    #[test]
    fn what_is_no_component_is_told_apart() {
        let said = |file: &[u8]| sections(file).map(|_| ()).unwrap_err().to_string();
        assert!(said(b"").contains("does not begin"));
        assert!(said(&COMPONENT[..7]).contains("does not begin"));
        assert!(said(&MODULE).contains("postern plugin pack"));
        assert!(sections(&COMPONENT).unwrap().next().is_none());
    }

    #[test]
    fn sections_can_be_added_and_taken_away() {
        let mut file = COMPONENT.to_vec();
        for (name, bytes) in [("a", 0), ("b", 200), ("a", 70_000)] {
            file.extend(encode(name, &vec![7; bytes]));
        }
        assert_eq!(names(&file), ["a", "b", "a"]);
        assert_eq!(names(&without(&file, &["a"]).unwrap()), ["b"]);
        assert_eq!(without(&file, &["c"]).unwrap(), file);
    }

    #[test]
    fn a_cut_file_is_not_read_to_its_end() {
        let mut file = COMPONENT.to_vec();
        file.extend(encode("name", b"content"));
        for cut in COMPONENT.len() + 1..file.len() {
            let all: Vec<_> = sections(&file[..cut]).unwrap().collect();
            assert!(matches!(&all[..], [Err(PluginError::File(why))] if why.contains("byte 8")), "{cut}: {all:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_somewhere(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let file: Vec<u8> = COMPONENT.into_iter().chain(bytes).collect();
            let mut at = COMPONENT.len();
            for section in sections(&file).unwrap().flatten() {
                prop_assert!(section.start == at && section.end > at && section.end <= file.len());
                at = section.end;
            }
        }
    }
}
