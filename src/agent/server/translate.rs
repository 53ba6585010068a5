//! Between a caller's web socket and the runtime's SPDY connection: the five channels of remote commands with the close
//! signal of `v5.channel.k8s.io` (that is what lets `kubectl exec -i` end its input), and tunnelled SPDY.

use super::spdy::{Frame, Writer, read};
use super::streams::Wanted;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Channel whose second byte names a channel that is closed (v5).
const CLOSE: u8 = 255;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

async fn socket(caller: OnUpgrade) -> Option<Socket> {
    let upgraded = caller.await.ok()?;
    Some(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await)
}

/// Joins the channels of a remote command until it ends.
pub(super) async fn channels(caller: OnUpgrade, upstream: TokioIo<Upgraded>, want: Wanted) {
    let Some(socket) = socket(caller).await else { return };
    if let Err(e) = bridge(socket, upstream, &want).await {
        tracing::debug!("remote command: {e}");
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn bridge(socket: Socket, upstream: TokioIo<Upgraded>, want: &Wanted) -> Result<(), BoxError> {
    let (mut reader, writer) = tokio::io::split(upstream);
    let mut writer = Writer::new(writer);
    let mut by_channel: HashMap<u8, u32> = HashMap::new();
    // The error stream first, as the runtime's own client does.
    let streams = [
        (ERROR, "error", true),
        (STDIN, "stdin", want.stdin),
        (STDOUT, "stdout", want.stdout),
        (STDERR, "stderr", want.stderr),
        (RESIZE, "resize", want.tty),
    ];
    for (channel, name, wanted) in streams {
        if wanted {
            by_channel.insert(channel, writer.open(&[("streamType", name)]).await?);
        }
    }
    let by_stream: HashMap<u32, u8> = by_channel.iter().map(|(c, s)| (*s, *c)).collect();
    let (frames, mut incoming) = mpsc::channel(8);
    // Reading a frame cannot be interrupted half-way, so it has its own task.
    let reading = tokio::spawn(async move {
        while let Ok(Some(frame)) = read(&mut reader).await {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    });
    let (mut out, mut messages) = socket.split();
    let mut open: Vec<u8> = [STDOUT, STDERR, ERROR]
        .into_iter()
        .filter(|c| by_channel.contains_key(c))
        .collect();
    let result: Result<(), BoxError> = async {
        while !open.is_empty() {
            tokio::select! {
                frame = incoming.recv() => match frame {
                    None => break,
                    Some(Frame::Data { stream, fin, data }) => {
                        let Some(channel) = by_stream.get(&stream) else { continue };
                        if !data.is_empty() {
                            out.send(Message::Binary(tagged(*channel, &data))).await?;
                        }
                        if fin {
                            open.retain(|c| c != channel);
                        }
                    }
                    Some(Frame::Reset { stream }) => open.retain(|c| by_stream.get(&stream) != Some(c)),
                    Some(Frame::Ping { id }) => writer.pong(id).await?,
                    Some(Frame::GoAway | Frame::Other) => {}
                },
                message = messages.next() => match message {
                    None | Some(Ok(Message::Close(_))) => break,
                    Some(Err(e)) => return Err(e.into()),
                    Some(Ok(Message::Ping(data))) => out.send(Message::Pong(data)).await?,
                    Some(Ok(Message::Binary(data))) => from_caller(&data, &by_channel, &mut writer).await?,
                    // A client that writes a string sends a frame of text; the channel comes first in it, too.
                    Some(Ok(Message::Text(text))) => from_caller(text.as_bytes(), &by_channel, &mut writer).await?,
                    Some(Ok(_)) => {}
                },
            }
        }
        out.send(normal_close()).await?;
        // The caller answers the close; without waiting for it the last bytes may be lost with the connection.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), async {
            while let Some(Ok(_)) = messages.next().await {}
        })
        .await;
        Ok(())
    }
    .await;
    reading.abort();
    result
}

/// The end of a session that went well (RFC 6455, section 7.4.1): callers take a close without a code for a broken connection
/// and throw away what the channels have brought.
fn normal_close() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

fn tagged(channel: u8, data: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(data.len() + 1);
    out.push(channel);
    out.extend_from_slice(data);
    out.into()
}

async fn from_caller<W: tokio::io::AsyncWrite + Unpin>(
    data: &[u8],
    by_channel: &HashMap<u8, u32>,
    writer: &mut Writer<W>,
) -> std::io::Result<()> {
    let Some((channel, payload)) = data.split_first() else {
        return Ok(());
    };
    match *channel {
        STDIN | RESIZE => match by_channel.get(channel) {
            Some(stream) if !payload.is_empty() => writer.data(*stream, false, payload).await,
            _ => Ok(()),
        },
        CLOSE => match payload.first().and_then(|c| by_channel.get(c)) {
            Some(stream) => writer.data(*stream, true, b"").await,
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Takes a SPDY connection out of the web socket it is tunnelled in.
pub(super) async fn tunnel(caller: OnUpgrade, upstream: TokioIo<Upgraded>) {
    let Some(socket) = socket(caller).await else { return };
    let (mut out, mut messages) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(upstream);
    let up = async {
        while let Some(Ok(message)) = messages.next().await {
            match message {
                Message::Binary(data) => match writer.write_all(&data).await {
                    Ok(()) => drop(writer.flush().await),
                    Err(_) => break,
                },
                Message::Close(_) => break,
                _ => {}
            }
        }
        let _ = writer.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0u8; 32 * 1024];
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    if out
                        .send(Message::Binary(Bytes::copy_from_slice(&buffer[..n])))
                        .await
                        .is_err()
                    {
                        break;
                    }
                }
            }
        }
        let _ = out.send(normal_close()).await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
