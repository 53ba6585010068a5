//! A registry for tests: the distribution specification's pull and push sides in memory, and whatever can go wrong on
//! demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use oci::{Descriptor, Digest, Index, Platform, media_type};
use serde_json::Value;

use crate::host_platform;

/// What goes wrong, once, with the first request that fits.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// The method and a part of the path: `PATCH uploads`.
    pub(crate) on: &'static str,
    pub(crate) what: Trouble,
}

#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// An answer instead of the work.
    Status(u16),
    /// The connection ends after so many bytes of the request's body, which are kept as the registry would.
    CutRequest(usize),
    /// The connection ends after so many bytes of the answer's body.
    CutAnswer(usize),
    /// The work is done, and the answer gets lost.
    LoseAnswer,
    /// No answer ever comes.
    Hang,
    /// After so many bytes of the answer's body nothing more comes.
    HangAnswer(usize),
    /// The answer announces no length, and goes on for so many bytes.
    Endless(usize),
}

/// What kind of registry it is.
#[derive(Clone)]
pub(crate) struct Kind {
    /// Name and password; none lets everybody in.
    pub(crate) login: Option<(&'static str, &'static str)>,
    /// Tokens are wanted, and everybody gets one.
    pub(crate) open: bool,
    /// Passwords with every request instead of tokens.
    pub(crate) basic: bool,
    /// How often a token is good.
    pub(crate) token_uses: usize,
    pub(crate) mounts: bool,
    pub(crate) pieces: bool,
    pub(crate) smallest_piece: usize,
    pub(crate) referrers: bool,
    pub(crate) ranges: bool,
}

impl Default for Kind {
    fn default() -> Self {
        Kind {
            login: None,
            open: false,
            basic: false,
            token_uses: usize::MAX,
            mounts: true,
            pieces: true,
            smallest_piece: 0,
            referrers: true,
            ranges: true,
        }
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) blobs: BTreeMap<String, BTreeMap<Digest, Vec<u8>>>,
    /// By repository and tag or digest: media type and content.
    pub(crate) manifests: BTreeMap<String, BTreeMap<String, (String, Vec<u8>)>>,
    uploads: BTreeMap<String, Vec<u8>>,
    /// How many uploads there were.
    begun: usize,
    tokens: BTreeMap<String, usize>,
    pub(crate) faults: Vec<Fault>,
    /// `METHOD /path [range]`, in order.
    pub(crate) log: Vec<String>,
    /// Bytes of bodies that came in.
    pub(crate) received: u64,
    /// Bytes of blobs and manifests that went out.
    pub(crate) sent: u64,
}

/// What a stored image consists of.
pub(crate) struct Stored {
    pub(crate) layer: Digest,
    pub(crate) manifest: Digest,
    pub(crate) index: Digest,
}

#[derive(Clone)]
pub(crate) struct Double {
    pub(crate) address: String,
    kind: Arc<Kind>,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

fn answer(status: u16) -> Answer {
    Answer {
        status,
        headers: Vec::new(),
        body: Vec::new(),
    }
}

fn refuse(status: u16, code: &str) -> Answer {
    let body = serde_json::json!({"errors": [{"code": code, "message": code.to_lowercase()}]});
    Answer {
        body: serde_json::to_vec(&body).unwrap(),
        ..answer(status)
    }
}

impl Answer {
    fn with(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.headers.push((name.to_string(), value.into()));
        self
    }
}

impl Double {
    /// Serves until the process ends.
    pub(crate) fn start(kind: Kind) -> Double {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let double = Double {
            address: listener.local_addr().unwrap().to_string(),
            kind: Arc::new(kind),
            state: Arc::default(),
        };
        let serving = double.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = serving.clone();
                std::thread::spawn(move || while serving.exchange(&stream).is_some() {});
            }
        });
        double
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn fault(&self, on: &'static str, what: Trouble) {
        self.state().faults.push(Fault { on, what });
    }

    /// Forgets what was counted.
    pub(crate) fn reset(&self) {
        let mut state = self.state();
        state.log.clear();
        (state.received, state.sent) = (0, 0);
    }

    /// Stores the image `name:tag` with one layer: an index of a manifest for another platform, which is not there, and one
    /// for this platform.
    pub(crate) fn image(&self, name: &str, tag: &str, layer: &[u8]) -> Stored {
        let config = serde_json::json!({"architecture": host_platform().architecture, "os": "linux"}).to_string();
        let blob = |kind: &str, body: &[u8]| {
            let mut state = self.state();
            let blobs = state.blobs.entry(name.to_string()).or_default();
            blobs.insert(Digest::of(body), body.to_vec());
            Descriptor::of(kind, body)
        };
        let layer = blob(media_type::LAYER_TAR, layer);
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::MANIFEST, "config": blob(media_type::CONFIG, config.as_bytes()),
            "layers": [layer], "annotations": {"keep": "me"},
        });
        let manifest = serde_json::to_vec_pretty(&manifest).unwrap();
        let mut entry = self.put(name, Digest::of(&manifest).as_str(), media_type::MANIFEST, &manifest);
        entry.platform = Some(host_platform());
        let mut other = Descriptor::of(media_type::MANIFEST, b"other");
        other.platform = Some(Platform {
            architecture: "s390x".into(),
            os: "linux".into(),
            variant: None,
        });
        let index = Index {
            manifests: vec![other, entry.clone()],
            ..Index::default()
        };
        let index = serde_json::to_vec(&index).unwrap();
        let digest = self.put(name, tag, media_type::INDEX, &index).digest;
        self.put(name, digest.as_str(), media_type::INDEX, &index);
        Stored {
            layer: layer.digest,
            manifest: entry.digest,
            index: digest,
        }
    }

    /// Stores a manifest, whatever it is.
    pub(crate) fn put(&self, name: &str, tag: &str, kind: &str, body: &[u8]) -> Descriptor {
        let mut state = self.state();
        let manifests = state.manifests.entry(name.to_string()).or_default();
        manifests.insert(tag.to_string(), (kind.to_string(), body.to_vec()));
        Descriptor::of(kind, body)
    }

    /// One request and its answer; none if the connection is to end.
    fn exchange(&self, stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let Some(mut request) = head(&mut reader) else {
            // Whoever speaks TLS to us is told as every server tells it; it may be gone already.
            let mut stream = stream;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
            return None;
        };
        let trouble = self.trouble(&request);
        let length: usize = request
            .headers
            .get("content-length")
            .map_or(0, |length| length.parse().unwrap());
        assert!(
            !request.headers.contains_key("transfer-encoding"),
            "sizes are always told"
        );
        let limit = match &trouble {
            Some(Trouble::CutRequest(limit)) => length.min(*limit),
            _ => length,
        };
        request.body = vec![0; limit];
        reader.read_exact(&mut request.body).ok()?;
        self.state().received += limit as u64;
        if let Some(Trouble::CutRequest(_)) = trouble {
            self.keep_part(&request);
            return None;
        }
        let answer = match trouble {
            Some(Trouble::Status(status)) => refuse(status, "BAD_MOMENT").with("Retry-After", "0"),
            _ => self.handle(&request),
        };
        match trouble {
            Some(Trouble::LoseAnswer) => return None,
            Some(Trouble::Hang) => hang(),
            _ => {}
        }
        if let Some(Trouble::Endless(more)) = trouble {
            let mut stream = stream;
            stream.write_all(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n").ok()?;
            stream
                .write_all(&answer.body)
                .and_then(|()| stream.write_all(&vec![b'x'; more]))
                .ok()?;
            return None;
        }
        let cut = match trouble {
            Some(Trouble::CutAnswer(limit) | Trouble::HangAnswer(limit)) => limit,
            _ => usize::MAX,
        };
        let written = self.write(stream, &request, answer, cut);
        match trouble {
            Some(Trouble::HangAnswer(_)) => hang(),
            _ => written,
        }
    }

    fn write(&self, mut stream: &TcpStream, request: &Request, answer: Answer, cut: usize) -> Option<()> {
        let mut head = format!(
            "HTTP/1.1 {} X\r\nContent-Length: {}\r\n",
            answer.status,
            answer.body.len()
        );
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        if request.method == "HEAD" {
            return Some(());
        }
        let size = answer.body.len().min(cut);
        // Before the client has it, and looks.
        if request.path.contains("/blobs/") || request.path.contains("/manifests/") {
            self.state().sent += size as u64;
        }
        stream.write_all(&answer.body[..size]).ok()?;
        (size == answer.body.len()).then_some(())
    }

    fn trouble(&self, request: &Request) -> Option<Trouble> {
        let mut state = self.state();
        let range = request
            .headers
            .get("range")
            .map(|range| format!(" {range}"))
            .unwrap_or_default();
        state.log.push(format!("{} {}{range}", request.method, request.path));
        let fits = |fault: &Fault| {
            let (method, part) = fault.on.split_once(' ').unwrap();
            request.method == method && request.path.contains(part)
        };
        let at = state.faults.iter().position(fits)?;
        Some(state.faults.remove(at).what)
    }

    /// Registries keep what arrived of a piece.
    fn keep_part(&self, request: &Request) {
        let id = request.path.rsplit('/').next().unwrap();
        if request.method == "PATCH"
            && let Some(upload) = self.state().uploads.get_mut(id)
        {
            upload.extend(&request.body);
        }
    }

    fn handle(&self, request: &Request) -> Answer {
        if request.path == "/token" {
            return self.token(request);
        }
        if let Some(refusal) = self.unknown(request) {
            return refusal;
        }
        let Some(rest) = request.path.strip_prefix("/v2/") else {
            return answer(404);
        };
        for (part, handler) in [
            (
                "/blobs/uploads/",
                Double::upload as fn(&Double, &Request, &str, &str) -> Answer,
            ),
            ("/blobs/", Double::blob),
            ("/manifests/", Double::manifest),
            ("/referrers/", Double::referrers),
        ] {
            if let Some((repository, name)) = rest.split_once(part) {
                return handler(self, request, repository, name);
            }
        }
        answer(404)
    }

    /// An answer for those who don't prove who they are.
    fn unknown(&self, request: &Request) -> Option<Answer> {
        if self.kind.login.is_none() && !self.kind.open {
            return None;
        }
        let (user, password) = self.kind.login.unwrap_or_default();
        let given = request
            .headers
            .get("authorization")
            .map(String::as_str)
            .unwrap_or_default();
        if self.kind.basic {
            let expected = format!("Basic {}", base64(&format!("{user}:{password}")));
            return (given != expected)
                .then(|| refuse(401, "UNAUTHORIZED").with("WWW-Authenticate", "Basic realm=\"x\""));
        }
        let mut state = self.state();
        if let Some(uses) = state.tokens.get_mut(given.strip_prefix("Bearer ").unwrap_or_default())
            && *uses > 0
        {
            *uses -= 1;
            return None;
        }
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"double\"", self.address);
        Some(refuse(401, "UNAUTHORIZED").with("WWW-Authenticate", challenge))
    }

    fn token(&self, request: &Request) -> Answer {
        let (user, password) = self.kind.login.unwrap_or_default();
        let expected = format!("Basic {}", base64(&format!("{user}:{password}")));
        if !self.kind.open && request.headers.get("authorization") != Some(&expected) {
            return refuse(401, "UNAUTHORIZED");
        }
        let mut state = self.state();
        let token = format!("token{}", state.tokens.len());
        state.tokens.insert(token.clone(), self.kind.token_uses);
        Answer {
            body: format!("{{\"token\":{token:?}}}").into_bytes(),
            ..answer(200)
        }
    }

    fn upload(&self, request: &Request, repository: &str, id: &str) -> Answer {
        let mut state = self.state();
        let place = |id: &str| format!("/v2/{repository}/blobs/uploads/{id}");
        if request.method == "POST" {
            if let (Some(digest), Some(from)) = (request.query.get("mount"), request.query.get("from")) {
                let digest: Digest = digest.parse().unwrap();
                let content = state.blobs.get(from).and_then(|blobs| blobs.get(&digest)).cloned();
                if let Some(content) = content.filter(|_| self.kind.mounts) {
                    state
                        .blobs
                        .entry(repository.to_string())
                        .or_default()
                        .insert(digest, content);
                    return answer(201);
                }
            }
            state.begun += 1;
            let id = format!("u{}", state.begun);
            state.uploads.insert(id.clone(), Vec::new());
            let smallest = self.kind.smallest_piece.to_string();
            return answer(202)
                .with("Location", place(&id))
                .with("OCI-Chunk-Min-Length", smallest);
        }
        let Some(upload) = state.uploads.get_mut(id) else {
            return refuse(404, "BLOB_UPLOAD_UNKNOWN");
        };
        match request.method.as_str() {
            "PATCH" if !self.kind.pieces => refuse(405, "UNSUPPORTED"),
            "PATCH" => {
                let range = request.headers["content-range"].clone();
                let (start, end) = range.split_once('-').unwrap();
                let size = end.parse::<usize>().unwrap() + 1 - start.parse::<usize>().unwrap();
                if start.parse() != Ok(upload.len()) || size != request.body.len() {
                    return refuse(416, "BLOB_UPLOAD_INVALID");
                }
                upload.extend(&request.body);
                let range = format!("0-{}", upload.len() - 1);
                answer(202).with("Location", place(id)).with("Range", range)
            }
            "GET" => {
                let range = format!("0-{}", upload.len().saturating_sub(1));
                answer(204).with("Location", place(id)).with("Range", range)
            }
            "DELETE" => {
                state.uploads.remove(id);
                answer(204)
            }
            "PUT" => {
                upload.extend(&request.body);
                let content = state.uploads.remove(id).unwrap();
                let digest: Digest = request.query["digest"].parse().unwrap();
                if Digest::of(&content) != digest {
                    return refuse(400, "DIGEST_INVALID");
                }
                state
                    .blobs
                    .entry(repository.to_string())
                    .or_default()
                    .insert(digest, content);
                answer(201)
            }
            _ => answer(405),
        }
    }

    fn blob(&self, request: &Request, repository: &str, digest: &str) -> Answer {
        let state = self.state();
        let content = state
            .blobs
            .get(repository)
            .and_then(|blobs| blobs.get(&digest.parse().ok()?));
        let Some(content) = content.cloned() else {
            return refuse(404, "BLOB_UNKNOWN");
        };
        let range = request.headers.get("range").filter(|_| self.kind.ranges);
        let start = range.map(|range| {
            range
                .strip_prefix("bytes=")
                .unwrap()
                .trim_end_matches('-')
                .parse::<usize>()
                .unwrap()
        });
        match start {
            None => Answer {
                body: content,
                ..answer(200)
            },
            Some(start) if start >= content.len() => answer(416),
            Some(start) => Answer {
                body: content[start..].to_vec(),
                ..answer(206)
            }
            .with(
                "Content-Range",
                format!("bytes {start}-{}/{}", content.len() - 1, content.len()),
            ),
        }
    }

    fn manifest(&self, request: &Request, repository: &str, name: &str) -> Answer {
        let mut state = self.state();
        if request.method != "PUT" {
            let found = state
                .manifests
                .get(repository)
                .and_then(|manifests| manifests.get(name));
            return match found.cloned() {
                None => refuse(404, "MANIFEST_UNKNOWN"),
                Some((kind, body)) => Answer { body, ..answer(200) }.with("Content-Type", kind),
            };
        }
        let document: Value = serde_json::from_slice(&request.body).unwrap();
        let named = |value: &Value| value["digest"].as_str().unwrap().parse::<Digest>().unwrap();
        let blobs = state.blobs.get(repository);
        let layers = document["layers"]
            .as_array()
            .into_iter()
            .flatten()
            .chain(document.get("config"));
        let missing_blob = layers
            .map(named)
            .any(|digest| blobs.is_none_or(|blobs| !blobs.contains_key(&digest)));
        let manifests = state.manifests.entry(repository.to_string()).or_default();
        let listed = document["manifests"].as_array().into_iter().flatten().map(named);
        let missing_manifest =
            name.starts_with("sha256-") || listed.into_iter().all(|digest| manifests.contains_key(digest.as_str()));
        if missing_blob || !missing_manifest {
            return refuse(400, "MANIFEST_BLOB_UNKNOWN");
        }
        let digest = Digest::of(&request.body).to_string();
        let entry = (request.headers["content-type"].clone(), request.body.clone());
        manifests.insert(digest.clone(), entry.clone());
        manifests.insert(name.to_string(), entry);
        let answer = answer(201).with("Docker-Content-Digest", digest);
        match document["subject"]["digest"].as_str().filter(|_| self.kind.referrers) {
            Some(subject) => answer.with("OCI-Subject", subject),
            None => answer,
        }
    }

    fn referrers(&self, _: &Request, repository: &str, subject: &str) -> Answer {
        if !self.kind.referrers {
            return answer(404);
        }
        let state = self.state();
        let mut found = BTreeMap::new();
        for (kind, body) in state.manifests.get(repository).into_iter().flat_map(BTreeMap::values) {
            let document: Value = serde_json::from_slice(body).unwrap();
            if document["subject"]["digest"] == subject {
                let digest = Digest::of(body);
                let entry = serde_json::json!({"mediaType": kind, "digest": digest, "size": body.len(), "artifactType": document["artifactType"]});
                found.insert(digest, entry);
            }
        }
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": found.into_values().collect::<Vec<_>>()});
        Answer {
            body: serde_json::to_vec(&index).unwrap(),
            ..answer(200)
        }
        .with("Content-Type", media_type::INDEX)
    }
}

/// Keeps the connection open and does nothing, until the test's process ends.
fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn head(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_string(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = pairs.map(|(name, value)| (name.to_string(), value.replace("%3A", ":").replace("%2F", "/")));
    let mut request = Request {
        method,
        path: path.to_string(),
        query: query.collect(),
        headers: BTreeMap::new(),
        body: Vec::new(),
    };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else {
            return Some(request);
        };
        request.headers.insert(name.to_ascii_lowercase(), value.to_string());
    }
}

fn base64(text: &str) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}
