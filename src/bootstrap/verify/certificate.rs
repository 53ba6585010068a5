//! The certificate of an API server as it is served: for every name by which it shall be called, and the one that is written on the
//! host. A server that was not told of a new certificate goes on with the old one.

use super::probes::until;
use crate::{effects, paths, session::Session, site::Seat, site::Site, way::Stream};
use futures::future::join_all;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use std::{net::Ipv4Addr, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Larger files are no certificates.
const CERTIFICATE_LIMIT: u64 = 64 << 10;

/// Looks at the server of one master until it serves what it should, or time is up.
pub(super) async fn api_server(
    site: &Site,
    seat: &Seat,
    session: &Session,
    deadline: Instant,
) -> Result<String, String> {
    let read = |path: &'static str| async move {
        let text = session.client.read_file(path, CERTIFICATE_LIMIT).await;
        text.map_err(|error| format!("{path} on the host: {error}"))
    };
    let (authority, written) = (read(paths::CA_CERT).await?, read(paths::API_SERVER_CERT).await?);
    let config = Arc::new(trusting(&authority)?);
    let written = CertificateDer::from_pem_slice(&written)
        .map_err(|error| format!("{} on the host: {error}", paths::API_SERVER_CERT))?;
    let mut names = effects::api_server_names(site, seat);
    names.retain(|name| can_be_called(name));
    until(deadline, || async {
        let served = names.iter().map(|name| async {
            let stream = connect(session, seat.ip).await?;
            served(stream, &config, name).await
        });
        compare(&names, join_all(served).await, &written)
    })
    .await
}

async fn connect(session: &Session, ip: Ipv4Addr) -> Result<Stream, String> {
    let stream = session
        .connection
        .connect_stream(&ip.to_string(), paths::API_PORT)
        .await;
    stream.map_err(|error| format!("{ip}:{} cannot be reached: {error}", paths::API_PORT))
}

/// A pattern for all names of a top-level domain (`*.corp`) is taken by clients that Kubernetes has, and not by ours; that the
/// certificate is the one that was written says as much.
fn can_be_called(name: &str) -> bool {
    name.strip_prefix("*.").is_none_or(|domain| domain.contains('.'))
}

/// Believes what the authority has signed, and nothing else.
fn trusting(authority: &[u8]) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority) {
        let certificate = certificate.map_err(|error| format!("{}: {error}", paths::CA_CERT))?;
        roots
            .add(certificate)
            .map_err(|error| format!("{}: {error}", paths::CA_CERT))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The certificate that a server shows to a client that calls it `name`, if that client believes it.
async fn served<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: &Arc<ClientConfig>,
    name: &str,
) -> Result<CertificateDer<'static>, String> {
    // A pattern is for any name that fits it.
    let called = match name.strip_prefix("*.") {
        Some(domain) => format!("any.{domain}"),
        None => name.to_owned(),
    };
    let server = ServerName::try_from(called).map_err(|_| format!("{name:?} is no name a certificate can be for"))?;
    let connected = TlsConnector::from(Arc::clone(config)).connect(server, stream).await;
    let stream = connected.map_err(|error| format!("under the name {name}: {error}"))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let first = chain
        .first()
        .ok_or_else(|| format!("under the name {name}: it shows no certificate"))?;
    Ok(first.clone().into_owned())
}

fn compare(
    names: &[String],
    served: Vec<Result<CertificateDer<'static>, String>>,
    written: &CertificateDer<'_>,
) -> Result<String, String> {
    let mut wrong: Vec<String> = Vec::new();
    for (name, certificate) in names.iter().zip(served) {
        match certificate {
            Ok(certificate) if certificate == *written => {}
            Ok(certificate) => wrong.push(format!(
                "under the name {name} it serves the certificate {}, but {} has {}",
                serial(&certificate),
                paths::API_SERVER_CERT,
                serial(written)
            )),
            Err(why) => wrong.push(why),
        }
    }
    match wrong.len() {
        0 => Ok(format!(
            "serves its certificate under {}",
            oci::counted(names.len(), "name")
        )),
        1..=2 => Err(wrong.join("; ")),
        // An old certificate is so under all names.
        more => Err(format!("{}; and so under {} more", wrong.swap_remove(0), more - 1)),
    }
}

fn serial(certificate: &CertificateDer<'_>) -> String {
    match X509Certificate::from_der(certificate) {
        Ok((_, certificate)) => certificate.raw_serial_as_string(),
        Err(_) => "that cannot be read".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::ServerConfig;
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio_rustls::TlsAcceptor;

    struct Authority {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["kubernetes".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Authority { pem, issuer }
    }

    /// A server with a certificate for these names, and that certificate.
    fn server(authority: &Authority, names: &[&str]) -> (TlsAcceptor, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &authority.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        (TlsAcceptor::from(Arc::new(config)), certificate)
    }

    async fn look(
        acceptor: &TlsAcceptor,
        authority: &Authority,
        names: &[&str],
        written: &CertificateDer<'_>,
    ) -> Result<String, String> {
        let config = Arc::new(trusting(authority.pem.as_bytes())?);
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let shown = names.iter().map(|name| async {
            let (near, far) = tokio::io::duplex(1 << 14);
            let accepted = tokio::spawn(acceptor.accept(far));
            let certificate = served(near, &config, name).await;
            drop(accepted.await);
            certificate
        });
        compare(&names, join_all(shown).await, written)
    }

    #[tokio::test]
    async fn a_certificate_is_good_under_every_name_it_shall_have() {
        let ours = authority();
        let names = ["m1", "10.0.0.1", "*.corp.example"];
        assert!(names.iter().all(|name| can_be_called(name)) && !can_be_called("*.corp"));
        let (acceptor, written) = server(&ours, &names);
        let good = look(&acceptor, &ours, &names, &written).await;
        assert_eq!(good.unwrap(), "serves its certificate under 3 names");
        let error = look(&acceptor, &ours, &["m1", "api.example.org"], &written)
            .await
            .unwrap_err();
        assert!(error.starts_with("under the name api.example.org: "), "{error}");
        let error = look(&acceptor, &authority(), &["m1"], &written).await.unwrap_err();
        assert!(error.starts_with("under the name m1: "), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_the_one_that_was_written_is_told() {
        let ours = authority();
        let (acceptor, old) = server(&ours, &["m1", "m2", "m3"]);
        let (_, new) = server(&ours, &["m1", "m2", "m3"]);
        let error = look(&acceptor, &ours, &["m1", "m2", "m3"], &new).await.unwrap_err();
        let both = [serial(&old), serial(&new), "and so under 2 more".to_owned()];
        assert!(both.iter().all(|part| error.contains(part)), "{error}");
    }
}
