//! PEM out (RFC 7468). Reading is left to `rustls_pki_types::pem`, which has no writer.

use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

/// Bytes that make one line of 64 characters.
const LINE_BYTES: usize = 48;

pub(crate) const CERTIFICATE: &str = "CERTIFICATE";
pub(crate) const REQUEST: &str = "CERTIFICATE REQUEST";
pub(crate) const PRIVATE_KEY: &str = "PRIVATE KEY";

/// One PEM section. Wiped when dropped, since it may be a private key.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    // Large enough from the start: a string that grows leaves copies of the key behind in freed memory.
    let capacity = 2 * (label.len() + 20) + der.len().div_ceil(LINE_BYTES) * 65;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for line in der.chunks(LINE_BYTES) {
        BASE64.encode_append(line, &mut text);
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    debug_assert!(text.len() <= capacity);
    text
}

/// Certificates, one section each.
#[must_use]
pub fn certificates(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|der| encode(CERTIFICATE, der).to_string()).collect()
}

/// A certificate request (PKCS #10, DER).
#[must_use]
pub fn request(der: &[u8]) -> String {
    encode(REQUEST, der).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_can_be_read(der in prop::collection::vec(any::<u8>(), 1..400)) {
            let text = encode(PRIVATE_KEY, &der);
            prop_assert!(text.lines().all(|line| line.len() <= 64));
            let read = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).unwrap();
            prop_assert_eq!(read.secret_pkcs8_der(), &der[..]);
        }
    }
}
