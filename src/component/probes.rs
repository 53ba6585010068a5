//! A plain HTTP server for probes and metrics of small components: a function from path to answer.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;

use crate::{Error, serving};

/// Connections at once; probes are few.
const MAX_CONNECTIONS: usize = 64;

/// The state of a component under one path: whether it is good, and a text that says more. `None`: no such path.
pub type Answers = dyn Fn(&str) -> Option<(bool, String)> + Send + Sync;

/// Opens `address` and answers probes there in the background until the runtime ends: 200 if good, 503 if not, 404 for
/// unknown paths. Returns the address it listens on.
///
/// # Errors
/// [`Error::Listen`] when the address cannot be listened on.
pub async fn serve(address: SocketAddr, answers: Arc<Answers>) -> Result<SocketAddr, Error> {
    let (listener, local) = serving::listen(address).await?;
    tokio::spawn(serving::accept(listener, MAX_CONNECTIONS, move |stream, _| {
        let answers = Arc::clone(&answers);
        serving::converse(stream, move |request| {
            std::future::ready(match answers(request.uri().path()) {
                Some((true, text)) => (StatusCode::OK, text),
                Some((false, text)) => (StatusCode::SERVICE_UNAVAILABLE, text),
                None => (StatusCode::NOT_FOUND, "no such path\n".to_owned()),
            })
        })
    }));
    Ok(local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_state_of_a_path_is_its_status() {
        let answers = |path: &str| matches!(path, "/good" | "/bad").then(|| (path == "/good", format!("at {path}")));
        let local = serve(([127, 0, 0, 1], 0).into(), Arc::new(answers)).await.unwrap();
        for (path, status, text) in [
            ("/good", "200 OK", "at /good"),
            ("/bad", "503 Service Unavailable", "at /bad"),
            ("/other", "404 Not Found", "no such path\n"),
        ] {
            let answer = get(local, path).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{text}")), "{answer}");
        }
    }
}
