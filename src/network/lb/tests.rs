use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};

use super::*;

/// A server that answers every connection with its name once the client has ended its half.
async fn server(name: &'static str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = Vec::new();
                if stream.read_to_end(&mut request).await.is_ok() {
                    request.extend(name.as_bytes());
                    _ = stream.write_all(&request).await;
                }
            });
        }
    });
    (address, task)
}

async fn balancer(servers: Vec<SocketAddr>, file: Option<PathBuf>) -> (SocketAddr, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(serve(listener, servers, file, async move { _ = stopped.await }));
    (address, stop)
}

async fn ask(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"hello ").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn connections_take_turns_and_half_closes_pass_through() {
    let ((one, _one), (two, _two)) = (server("one").await, server("two").await);
    let (address, _stop) = balancer(vec![one, two], None).await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(ask(address).await);
    }
    answers.sort();
    assert_eq!(answers, ["hello one", "hello one", "hello two", "hello two"]);
}

#[tokio::test]
async fn a_server_that_refuses_is_passed_over_within_the_same_connection() {
    let ((one, dead), (two, _two)) = (server("one").await, server("two").await);
    dead.abort();
    _ = dead.await;
    let (address, _stop) = balancer(vec![one, two], None).await;
    for _ in 0..3 {
        assert_eq!(ask(address).await, "hello two");
    }
}

#[tokio::test]
async fn a_server_written_into_the_file_is_used_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("servers");
    let ((one, _one), (two, _two)) = (server("one").await, server("two").await);
    let (address, _stop) = balancer(vec![one], Some(file.clone())).await;
    assert_eq!(ask(address).await, "hello one");
    std::fs::write(&file, two.to_string()).unwrap();
    timeout(Duration::from_secs(10), async {
        while ask(address).await != "hello two" {}
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn without_any_server_a_connection_is_closed() {
    let (gone, task) = server("gone").await;
    task.abort();
    _ = task.await;
    let (address, _stop) = balancer(vec![gone], None).await;
    assert_eq!(ask(address).await, "");
}
