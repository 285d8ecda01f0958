//! Prints the certificate authorities that Mozilla trusts for servers, as PEM. `deploy/image` puts them into the image.

use std::io::{self, Write as _};

use pem::{EncodeConfig, LineEnding, Pem};
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

/// Returns the file: the certificates, sorted, so that its bytes depend on nothing but the set.
fn bundle() -> String {
    let mut certificates: Vec<_> = TLS_SERVER_ROOT_CERTS.iter().map(AsRef::as_ref).collect();
    certificates.sort_unstable();
    let certificates: Vec<Pem> =
        certificates.into_iter().map(|der: &[u8]| Pem::new("CERTIFICATE", der)).collect();
    pem::encode_many_config(&certificates, EncodeConfig::new().set_line_ending(LineEnding::LF))
}

fn main() -> io::Result<()> {
    io::stdout().lock().write_all(bundle().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_every_certificate_once() {
        let parsed = pem::parse_many(bundle()).unwrap_or_default();
        assert_eq!(parsed.len(), TLS_SERVER_ROOT_CERTS.len());
        assert!(parsed.len() > 100, "{} certificates are too few to be all", parsed.len());
        for certificate in TLS_SERVER_ROOT_CERTS {
            let found = parsed.iter().filter(|pem| pem.contents() == certificate.as_ref()).count();
            assert_eq!(found, 1);
        }
    }
}
