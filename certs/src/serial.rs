//! Serial numbers, as people copy them from one tool into another.

use std::{fmt, str::FromStr};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Serialize};

use crate::CertsError;

/// The most bytes of a serial number (RFC 5280, section 4.1.2.2), and one for a sign byte.
const MAX_SERIAL_BYTES: usize = 21;

/// The serial number of a certificate, unique for its issuer. Its text is lower-case hexadecimal; colons and capitals,
/// as `openssl x509 -serial` and browsers show them, are read as well.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(Vec<u8>);

impl Serial {
    /// The bytes as they stand in a certificate, the highest first.
    pub(crate) fn from_der(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// The bytes as they stand in a certificate, the highest first.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Serial {
    type Err = CertsError;

    fn from_str(text: &str) -> Result<Self, CertsError> {
        let digits = text.replace(':', "");
        let bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok();
        let bytes = bytes.filter(|bytes| (1..=MAX_SERIAL_BYTES).contains(&bytes.len()));
        bytes.map(Self).ok_or(CertsError::Serial)
    }
}

impl TryFrom<String> for Serial {
    type Error = CertsError;

    fn try_from(text: String) -> Result<Self, CertsError> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.to_string()
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_others_show_it() {
        for text in ["4a00ff", "4A00FF", "4a:00:ff"] {
            assert_eq!(text.parse::<Serial>().unwrap().to_string(), "4a00ff");
        }
        for text in ["", "4a0", "4g", "4a 00", &"00".repeat(22)] {
            assert!(matches!(text.parse::<Serial>(), Err(CertsError::Serial)), "{text}");
        }
    }
}
