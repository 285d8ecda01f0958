//! A private certificate authority and its certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// An authority that no system trusts. Its files exist as long as it or one of its certificates exists.
#[derive(Clone, Debug)]
pub struct Authority {
    folder: Arc<tempfile::TempDir>,
    certificate: PathBuf,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

/// A certificate and its key, in PEM files.
#[derive(Clone, Debug)]
pub struct Identity {
    _folder: Arc<tempfile::TempDir>,
    certificate: PathBuf,
    key: PathBuf,
}

impl Authority {
    /// Makes one.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key");
        let own = params.self_signed(&key).expect("a certificate");
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        let certificate = folder.path().join("ca.pem");
        std::fs::write(&certificate, own.pem()).expect("writes");
        Self { folder, certificate, issuer: Arc::new(Issuer::new(params, key)) }
    }

    /// Returns the file of its own certificate, for `ca` in a hosts.toml.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Issues a server certificate for names and addresses.
    pub fn server(&self, names: &[&str]) -> Identity {
        self.issue(names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Issues a client certificate.
    pub fn client(&self, name: &str) -> Identity {
        self.issue(&[name], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, names: &[&str], usage: ExtendedKeyUsagePurpose) -> Identity {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let stem = names[0].clone();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, stem.as_str());
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let pair = KeyPair::generate().expect("a key");
        let issued = params.signed_by(&pair, &self.issuer).expect("a certificate");
        let write = |ending: &str, text: String| {
            let file = self.folder.path().join(format!("{stem}.{ending}"));
            std::fs::write(&file, text).expect("writes");
            file
        };
        let (certificate, key) = (write("cert", issued.pem()), write("key", pair.serialize_pem()));
        Identity { _folder: self.folder.clone(), certificate, key }
    }
}

impl Identity {
    /// The file with the certificate.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// The file with the key.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// Returns the TLS configuration of a server.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        let certificate = CertificateDer::from_pem_file(&self.certificate).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&self.key).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("they belong together");
        Arc::new(config)
    }
}
