//! Fetching blobs from another host.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Ask, MAX_HEAD, trouble};
use crate::{
    Error, Result,
    frame::{self, Frame, Kind},
    proto::{Answer, Blob, FaultKind, Peer, Serving},
    tls::{self, Believing},
};

/// How long a host may take to be connected to. One that does not want to be reached is known by this only.
const CONNECTING: Duration = Duration::from_secs(5);
/// A host of which nothing is heard for so long, not even a sign of life, is gone.
const SILENCE: Duration = Duration::from_secs(20);
/// A host that is there but has not one byte more for so long is of no use.
const STANDSTILL: Duration = Duration::from_secs(120);

/// Fetches the bytes of `blob` from `offset` on into `pieces`; an empty piece says that this was all.
///
/// # Errors
/// When the other host is not the one, does not give the blob, or gives nothing for too long, and when nobody takes the pieces.
pub(crate) async fn fetch(from: &Peer, blob: &Blob, offset: u64, pieces: &mpsc::Sender<Bytes>) -> Result<()> {
    let address = from.at.address;
    let failed = |e: std::io::Error| Error::failed(format!("fetching from {address}: {e}"));
    let late = |what: &str| Error::new(FaultKind::Timeout, format!("fetching from {address}: {what}"));
    let connecting = timeout(CONNECTING, connect(&from.at));
    let mut stream = connecting
        .await
        .map_err(|_| late("it cannot be connected to; is a firewall between the hosts?"))?
        .map_err(failed)?;
    let ask = Ask {
        token: from.token.clone(),
        blob: blob.clone(),
        offset,
    };
    let ask = Frame::head(0, &ask).map_err(failed)?;
    frame::write(&mut stream, &ask).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut moved = Instant::now();
    let mut left = blob.size.saturating_sub(offset);
    loop {
        let frame = timeout(SILENCE, frame::read_bounded(&mut stream, MAX_HEAD)).await;
        let frame = frame.map_err(|_| late("nothing is heard of it"))?.map_err(failed)?;
        let frame = frame.ok_or_else(|| Error::failed(format!("fetching from {address}: it hung up")))?;
        match frame.kind {
            Kind::Data if frame.body.is_empty() => {
                if moved.elapsed() > STANDSTILL {
                    return Err(late("not one more byte came"));
                }
            }
            Kind::Data => {
                let length = frame.body.len() as u64;
                left = left
                    .checked_sub(length)
                    .ok_or_else(|| Error::corrupt(format!("{address} sends more than blob {} has", blob.digest)))?;
                hand(pieces, frame.body).await?;
                moved = Instant::now();
            }
            Kind::End if left == 0 => return hand(pieces, Bytes::new()).await,
            Kind::End => return Err(Error::failed(format!("fetching from {address}: it ended too early"))),
            Kind::Head => return Err(refusal(&frame, from)),
            Kind::Cancel => return Err(Error::failed(format!("fetching from {address}: it gave up"))),
        }
    }
}

async fn hand(pieces: &mpsc::Sender<Bytes>, piece: Bytes) -> Result<()> {
    let handed = pieces.send(piece).await;
    handed.map_err(|_| Error::failed("what was fetched is not written any more"))
}

/// What the other host says about itself is a reason to ask somebody else, never one to give up.
fn refusal(frame: &Frame, from: &Peer) -> Error {
    let (kind, message) = match serde_json::from_slice(&frame.body) {
        Ok(Answer::Error(fault)) if fault.kind == FaultKind::NotFound => (fault.kind, fault.message),
        Ok(Answer::Error(fault)) => (FaultKind::Failed, fault.message),
        _ => (FaultKind::Failed, "it answers something unexpected".to_owned()),
    };
    Error::new(kind, format!("fetching from {}: {message}", from.at.address))
}

async fn connect(to: &Serving) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(to.address).await?;
    tcp.set_nodelay(true)?;
    let config = config(to.certificate.clone()).map_err(std::io::Error::other)?;
    let name = ServerName::IpAddress(to.address.ip().into());
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

fn config(certificate: oci::Digest) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(trouble)?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believing::only(certificate)))
        .with_no_client_auth())
}
