//! A client of registries that costs next to nothing itself: it reads answers to nowhere and writes content it has at hand.
//!
//! One connection a client, one request at a time, plain HTTP/1.1 against servers on loopback. Just enough of it for that.

use anyhow::{Context, Result, bail, ensure};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// How much is read at once, in bytes.
const BUFFER: usize = 256 << 10;
/// The longest head of an answer, in bytes.
const HEAD: usize = 16 << 10;

/// A connection to a server.
pub struct Client {
    stream: TcpStream,
    address: String,
    buffer: Vec<u8>,
}

/// The head of an answer whose body was thrown away.
pub struct Answer {
    status: u16,
    location: String,
    /// Bytes of the body.
    pub bytes: u64,
}

impl Client {
    /// Connects to a server.
    ///
    /// # Errors
    /// When nothing answers there.
    pub fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        Ok(Self {
            stream,
            address: address.to_owned(),
            buffer: vec![0; BUFFER],
        })
    }

    /// Sends a request with a body in parts, and reads the answer.
    ///
    /// # Errors
    /// When the connection breaks, or the status is not `expected`.
    pub fn ask(&mut self, method: &str, path: &str, headers: &str, body: &[&[u8]], expected: u16) -> Result<Answer> {
        let length: usize = body.iter().map(|part| part.len()).sum();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n{headers}\r\n",
            self.address
        );
        self.stream.write_all(head.as_bytes())?;
        for part in body {
            self.stream.write_all(part)?;
        }
        let answer = self.answer().with_context(|| format!("{method} {path}"))?;
        ensure!(answer.status == expected, "{method} {path}: status {}", answer.status);
        Ok(answer)
    }

    /// Gets something and throws it away.
    ///
    /// # Errors
    /// When the connection breaks, or the status is not 200.
    pub fn get(&mut self, path: &str) -> Result<u64> {
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json\r\n";
        Ok(self.ask("GET", path, accept, &[], 200)?.bytes)
    }

    /// Pushes a blob, whose content comes in parts, by POST and PUT.
    ///
    /// # Errors
    /// When a step is refused.
    pub fn push_blob(&mut self, name: &str, digest: &str, content: &[&[u8]]) -> Result<()> {
        let begun = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), "", &[], 202)?;
        let location = begun.location.strip_prefix(&format!("http://{}", self.address));
        let location = location.unwrap_or(&begun.location);
        let sign = if location.contains('?') { '&' } else { '?' };
        let to = format!("{location}{sign}digest={digest}");
        self.ask("PUT", &to, "Content-Type: application/octet-stream\r\n", content, 201)?;
        Ok(())
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut filled = 0;
        let end = loop {
            ensure!(filled < HEAD, "the head of the answer does not end");
            let count = self.stream.read(&mut self.buffer[filled..])?;
            ensure!(count > 0, "the server closed the connection");
            filled += count;
            if let Some(end) = self.buffer[..filled]
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break end + 4;
            }
        };
        let head = std::str::from_utf8(&self.buffer[..end])?.to_owned();
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (found, value) = line.split_once(':')?;
                found.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let Some(length) = header("content-length") else {
            bail!("the answer has no length");
        };
        let length: u64 = length.parse()?;
        let mut left = length
            .checked_sub((filled - end) as u64)
            .context("more came than announced")?;
        while left > 0 {
            let most = self.buffer.len().min(usize::try_from(left)?);
            let count = self.stream.read(&mut self.buffer[..most])?;
            ensure!(count > 0, "the answer broke off");
            left -= count as u64;
        }
        Ok(Answer {
            status: head.split(' ').nth(1).unwrap_or_default().parse()?,
            location: header("location").unwrap_or_default().to_owned(),
            bytes: length,
        })
    }
}

/// Lets `clients` do the same work at once, each with its number, and says how long all of them took.
///
/// # Errors
/// The first failure.
pub fn at_once(clients: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<Duration> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..clients)
            .map(|number| {
                scope.spawn({
                    let work = &work;
                    move || work(number)
                })
            })
            .collect();
        for client in running {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(start.elapsed())
    })
}
