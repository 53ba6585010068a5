//! The behaviours that the conformance tests of the distribution spec (1.1) ask for, as a story told to a registry.
//!
//! Every step notes the status it got, and checks what the spec says of headers and content where the registry claims success. The
//! story can be told to any registry; [`super::model`] tells it to Debian's.

use bytes::Bytes;
use http::Response;
use oci::{Digest, media_type};
use serde_json::{Value, json};

use super::{INDEX, MANIFEST, OCTETS, Server, Target, code, header, image, open_args, with};

/// What happened.
#[derive(Debug, Default)]
pub struct Transcript {
    /// The steps by name, with their statuses.
    pub steps: Vec<(String, u16)>,
    /// The lists of tags that were got.
    lists: Vec<Value>,
}

impl Transcript {
    fn note(&mut self, step: &str, response: &Response<Bytes>) -> u16 {
        let status = response.status().as_u16();
        self.steps.push((step.to_owned(), status));
        status
    }

    /// Notes a step that must be refused, with the error's code if the client is told that it is to blame.
    fn note_refused(&mut self, step: &str, response: &Response<Bytes>, expected: &str) {
        if self.note(step, response) == 400 {
            assert_eq!(code(response), expected, "{step}");
        }
    }

    /// Notes a step of an upload, which says how far the upload is if it went well.
    fn note_progress(&mut self, step: &str, response: &Response<Bytes>, range: &str) {
        if matches!(self.note(step, response), 202 | 204) {
            assert_eq!(header(response, "range"), range, "{step}");
        }
    }
}

/// The statuses of a registry that does everything the spec describes.
pub const EXPECTED: &[(&str, u16)] = &[
    ("base", 200),
    ("tags of nothing", 404),
    ("referrers of nothing", 200),
    ("missing blob", 404),
    ("missing manifest by digest", 404),
    ("missing manifest by tag", 404),
    ("begin", 202),
    ("whole by PUT", 201),
    ("whole by POST", 201),
    ("begin", 202),
    ("chunk 1", 202),
    ("chunk 2", 202),
    ("end", 201),
    ("begin", 202),
    ("stream", 202),
    ("end", 201),
    ("begin", 202),
    ("cancel", 204),
    ("after the end", 404),
    ("begin", 202),
    ("chunk 1", 202),
    ("last chunk out of order", 416),
    ("out of order", 416),
    ("chunk again", 416),
    ("state", 204),
    ("last chunk in PUT", 201),
    ("mount", 201),
    ("mounted", 200),
    ("mount from anywhere", 201),
    ("mount of what is missing", 202),
    ("empty blob", 200),
    ("part", 206),
    ("tail", 206),
    ("beyond", 416),
    ("wrong digest by POST", 400),
    ("begin", 202),
    ("wrong digest by PUT", 400),
    ("begin", 202),
    ("chunk 1", 202),
    ("wrong digest after chunks", 400),
    ("malformed digest", 400),
    ("manifest by digest", 201),
    ("manifest by tag", 201),
    ("manifest of wrong digest", 400),
    ("manifest of malformed digest", 400),
    ("pull of malformed digest", 400),
    ("manifest without its blobs", 400),
    ("manifest that is none", 400),
    ("manifest without layers", 201),
    ("manifest with layers elsewhere", 201),
    ("manifest of four million bytes", 201),
    ("manifest that is too large", 413),
    ("index", 201),
    ("index without its manifests", 400),
    ("empty index", 201),
    ("referrer", 201),
    ("other referrer", 201),
    ("index as referrer", 201),
    ("referrer of what is missing", 201),
    ("referrers", 200),
    ("referrers of a type", 200),
    ("referrers of what is missing", 200),
    ("referrers of malformed digest", 400),
    ("tags", 200),
    ("no tags", 200),
    ("two tags", 200),
    ("the next two tags", 200),
    ("tags after one", 200),
    ("delete tag", 202),
    ("deleted tag", 404),
    ("manifest of deleted tag", 200),
    ("delete manifest", 202),
    ("deleted manifest", 404),
    ("delete missing manifest", 404),
    ("delete blob", 202),
    ("deleted blob", 404),
    ("delete missing blob", 404),
];

const A: &str = "/v2/conformance/one";
const B: &str = "/v2/conformance/two";

/// Content that no other step uses.
fn unique(what: &str, size: usize) -> Vec<u8> {
    what.bytes().cycle().take(size).collect()
}

/// Tells the story.
pub async fn story(target: Target) -> Transcript {
    let mut all = Transcript::default();
    nothing(target, &mut all).await;
    whole(target, &mut all).await;
    chunked(target, &mut all).await;
    out_of_order(target, &mut all).await;
    mounts(target, &mut all).await;
    ranges(target, &mut all).await;
    wrong_digests(target, &mut all).await;
    manifests(target, &mut all).await;
    indexes(target, &mut all).await;
    referrers(target, &mut all).await;
    tags(target, &mut all).await;
    deletions(target, &mut all).await;
    all
}

async fn nothing(target: Target, all: &mut Transcript) {
    let digest = Digest::of(b"never pushed");
    for (step, path) in [
        ("base", "/v2/".to_owned()),
        ("tags of nothing", format!("{A}/tags/list")),
        ("referrers of nothing", format!("{A}/referrers/{digest}")),
        ("missing blob", format!("{A}/blobs/{digest}")),
        ("missing manifest by digest", format!("{A}/manifests/{digest}")),
        ("missing manifest by tag", format!("{A}/manifests/missing")),
    ] {
        all.note(step, &target.send("GET", &path, &[], b"").await);
    }
}

async fn begin(target: Target, all: &mut Transcript) -> String {
    let begun = target.send("POST", &format!("{A}/blobs/uploads/"), &[], b"").await;
    all.note("begin", &begun);
    header(&begun, "location").to_owned()
}

/// What was created can be got, in full and by its head.
async fn there(target: Target, created: &Response<Bytes>, content: &[u8]) {
    assert_eq!(header(created, "docker-content-digest"), Digest::of(content).as_str());
    let location = header(created, "location");
    let accept = [("accept", MANIFEST.1), ("accept", INDEX.1)];
    let got = target.send("GET", location, &accept, b"").await;
    assert_eq!(
        (got.status().as_u16(), got.body().as_ref() == content),
        (200, true),
        "{location}"
    );
    let head = target.send("HEAD", location, &accept, b"").await;
    assert_eq!(header(&head, "content-length"), content.len().to_string(), "{location}");
    assert_eq!(header(&head, "docker-content-digest"), Digest::of(content).as_str());
    assert!(head.body().is_empty());
}

async fn whole(target: Target, all: &mut Transcript) {
    let content = unique("by put", 512);
    let to = with(&begin(target, all).await, &format!("digest={}", Digest::of(&content)));
    let pushed = target.send("PUT", &to, &[OCTETS], &content).await;
    all.note("whole by PUT", &pushed);
    there(target, &pushed, &content).await;

    let content = unique("by post", 512);
    let to = format!("{A}/blobs/uploads/?digest={}", Digest::of(&content));
    let pushed = target.send("POST", &to, &[OCTETS], &content).await;
    if all.note("whole by POST", &pushed) == 201 {
        there(target, &pushed, &content).await;
    }
}

async fn chunk(target: Target, method: &str, to: &str, content: &[u8], first: usize, last: usize) -> Response<Bytes> {
    let range = format!("{first}-{last}");
    let headers = [OCTETS, ("content-range", range.as_str())];
    target.send(method, to, &headers, &content[first..=last]).await
}

async fn chunked(target: Target, all: &mut Transcript) {
    let content = unique("chunks", 1000);
    let digest = format!("digest={}", Digest::of(&content));
    let to = begin(target, all).await;
    let first = chunk(target, "PATCH", &to, &content, 0, 399).await;
    all.note_progress("chunk 1", &first, "0-399");
    let second = chunk(target, "PATCH", header(&first, "location"), &content, 400, 999).await;
    all.note_progress("chunk 2", &second, "0-999");
    let ended = target
        .send("PUT", &with(header(&second, "location"), &digest), &[], b"")
        .await;
    all.note("end", &ended);
    there(target, &ended, &content).await;

    let content = unique("stream", 1000);
    let streamed = target
        .send("PATCH", &begin(target, all).await, &[OCTETS], &content)
        .await;
    all.note("stream", &streamed);
    let digest = format!("digest={}", Digest::of(&content));
    let ended = target
        .send("PUT", &with(header(&streamed, "location"), &digest), &[], b"")
        .await;
    all.note("end", &ended);
    there(target, &ended, &content).await;

    let to = begin(target, all).await;
    all.note("cancel", &target.send("DELETE", &to, &[], b"").await);
    all.note("after the end", &target.send("GET", &to, &[], b"").await);
}

/// Chunks that do not begin where the upload stands change nothing, and the upload goes on.
async fn out_of_order(target: Target, all: &mut Transcript) {
    let content = unique("chunks in disorder", 1000);
    let digest = format!("digest={}", Digest::of(&content));
    let to = begin(target, all).await;
    let first = chunk(target, "PATCH", &to, &content, 0, 399).await;
    all.note_progress("chunk 1", &first, "0-399");
    let to = header(&first, "location").to_owned();
    let last = chunk(target, "PUT", &with(&to, &digest), &content, 700, 999).await;
    all.note("last chunk out of order", &last);
    let skipping = chunk(target, "PATCH", &to, &content, 700, 999).await;
    if all.note("out of order", &skipping) != 416 {
        return;
    }
    all.note("chunk again", &chunk(target, "PATCH", &to, &content, 0, 399).await);
    let state = target.send("GET", &to, &[], b"").await;
    all.note_progress("state", &state, "0-399");
    let to = with(header(&state, "location"), &digest);
    let ended = chunk(target, "PUT", &to, &content, 400, 999).await;
    all.note("last chunk in PUT", &ended);
    there(target, &ended, &content).await;
}

async fn mounts(target: Target, all: &mut Transcript) {
    let digest = target.push_blob("conformance/two", &unique("mount", 512)).await;
    let to = format!("{A}/blobs/uploads/?mount={digest}&from=conformance/two");
    let mounted = target.send("POST", &to, &[], b"").await;
    all.note("mount", &mounted);
    all.note(
        "mounted",
        &target.send("GET", header(&mounted, "location"), &[], b"").await,
    );
    let digest = target
        .push_blob("conformance/two", &unique("mount anonymously", 512))
        .await;
    let to = format!("{A}/blobs/uploads/?mount={digest}");
    all.note("mount from anywhere", &target.send("POST", &to, &[], b"").await);
    let missing = Digest::of(b"never pushed");
    let to = format!("{A}/blobs/uploads/?mount={missing}&from=conformance/two");
    let begun = target.send("POST", &to, &[], b"").await;
    all.note("mount of what is missing", &begun);
    assert!(header(&begun, "location").contains("/blobs/uploads/"));
}

async fn ranges(target: Target, all: &mut Transcript) {
    let empty = target.push_blob("conformance/one", b"").await;
    let got = target.send("GET", &format!("{A}/blobs/{empty}"), &[], b"").await;
    all.note("empty blob", &got);
    let content = unique("ranges", 2048);
    let digest = target.push_blob("conformance/one", &content).await;
    for (step, range, expected) in [
        (
            "part",
            "bytes=500-1499",
            Some((&content[500..1500], "bytes 500-1499/2048")),
        ),
        ("tail", "bytes=-48", Some((&content[2000..], "bytes 2000-2047/2048"))),
        ("beyond", "bytes=2048-", None),
    ] {
        let path = format!("{A}/blobs/{digest}");
        let got = target.send("GET", &path, &[("range", range)], b"").await;
        all.note(step, &got);
        if let Some((part, range)) = expected {
            assert!(got.body() == part, "{range}");
            assert_eq!(header(&got, "content-range"), range);
        }
    }
}

async fn wrong_digests(target: Target, all: &mut Transcript) {
    let wrong = Digest::of(b"something else");
    let parameter = format!("digest={wrong}");
    let content = unique("oh no", 512);
    let to = format!("{A}/blobs/uploads/?{parameter}");
    all.note(
        "wrong digest by POST",
        &target.send("POST", &to, &[OCTETS], &content).await,
    );
    let to = with(&begin(target, all).await, &parameter);
    all.note(
        "wrong digest by PUT",
        &target.send("PUT", &to, &[OCTETS], &content).await,
    );
    let first = target
        .send("PATCH", &begin(target, all).await, &[OCTETS], &content)
        .await;
    all.note("chunk 1", &first);
    let to = with(header(&first, "location"), &parameter);
    all.note("wrong digest after chunks", &target.send("PUT", &to, &[], b"").await);
    assert_eq!(target.status("HEAD", &format!("{A}/blobs/{wrong}")).await, 404);
    let path = format!("{A}/blobs/sha256:baddigeststring");
    all.note("malformed digest", &target.send("GET", &path, &[], b"").await);
}

async fn put(target: Target, reference: &str, content_type: (&str, &str), document: &[u8]) -> Response<Bytes> {
    let path = format!("{A}/manifests/{reference}");
    target.send("PUT", &path, &[content_type], document).await
}

fn pointer(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content), "size": content.len()})
}

fn edited(document: &[u8], fields: Value) -> Vec<u8> {
    let mut document: Value = serde_json::from_slice(document).unwrap();
    for (name, value) in fields.as_object().unwrap() {
        document[name] = value.clone();
    }
    document.to_string().into_bytes()
}

async fn manifests(target: Target, all: &mut Transcript) {
    let layer = unique("layer", 700);
    target.push_blob("conformance/one", b"{}").await;
    target.push_blob("conformance/one", &layer).await;
    let document = image(&layer);
    let digest = Digest::of(&document);
    for (step, reference) in [("manifest by digest", digest.as_str()), ("manifest by tag", "image")] {
        let created = put(target, reference, MANIFEST, &document).await;
        all.note(step, &created);
        there(target, &created, &document).await;
        let got = target
            .send(
                "GET",
                &format!("{A}/manifests/{reference}"),
                &[("accept", MANIFEST.1)],
                b"",
            )
            .await;
        assert_eq!(header(&got, "content-type"), MANIFEST.1);
    }
    let other = Digest::of(b"other");
    all.note(
        "manifest of wrong digest",
        &put(target, other.as_str(), MANIFEST, &document).await,
    );
    let malformed = "sha256:baddigeststring";
    all.note(
        "manifest of malformed digest",
        &put(target, malformed, MANIFEST, &document).await,
    );
    let path = format!("{A}/manifests/{malformed}");
    all.note("pull of malformed digest", &target.send("GET", &path, &[], b"").await);
    unusual_manifests(target, all, &document).await;
}

/// What is refused, and what is not although it looks strange.
async fn unusual_manifests(target: Target, all: &mut Transcript, document: &[u8]) {
    let refused = put(target, "x", MANIFEST, &image(b"never pushed")).await;
    all.note_refused("manifest without its blobs", &refused, "MANIFEST_BLOB_UNKNOWN");
    let refused = put(target, "x", MANIFEST, b"{\"not\": \"a manifest\"}").await;
    all.note_refused("manifest that is none", &refused, "MANIFEST_INVALID");
    let empty = edited(document, json!({"layers": []}));
    all.note(
        "manifest without layers",
        &put(target, "no-layers", MANIFEST, &empty).await,
    );
    let mut far = pointer(
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        b"far away",
    );
    far["urls"] = json!(["https://store.example.com/far"]);
    let elsewhere = edited(document, json!({"layers": [far]}));
    all.note(
        "manifest with layers elsewhere",
        &put(target, "elsewhere", MANIFEST, &elsewhere).await,
    );
    let annotations = |size: usize| json!({"annotations": {"large": "A".repeat(size)}});
    let large = edited(document, annotations(3_990_000));
    all.note(
        "manifest of four million bytes",
        &put(target, "large", MANIFEST, &large).await,
    );
    let larger = edited(document, annotations(4_400_000));
    all.note(
        "manifest that is too large",
        &put(target, "larger", MANIFEST, &larger).await,
    );
}

async fn indexes(target: Target, all: &mut Transcript) {
    let child = image(&unique("layer", 700));
    let platform = |mut entry: Value| {
        entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
        entry
    };
    let index = |entries: Value| {
        let index = json!({"schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": entries});
        index.to_string().into_bytes()
    };
    let document = index(json!([platform(pointer(MANIFEST.1, &child))]));
    let created = put(target, "index", INDEX, &document).await;
    if all.note("index", &created) == 201 {
        there(target, &created, &document).await;
    }
    let dangling = index(json!([platform(pointer(MANIFEST.1, b"never pushed"))]));
    all.note(
        "index without its manifests",
        &put(target, "dangling", INDEX, &dangling).await,
    );
    all.note(
        "empty index",
        &put(target, "empty-index", INDEX, &index(json!([]))).await,
    );
}

async fn list(target: Target, subject: &Digest, query: &str) -> (Response<Bytes>, Vec<Value>) {
    let path = format!("{A}/referrers/{subject}{query}");
    let answer = target.send("GET", &path, &[], b"").await;
    let document: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let entries = document["manifests"].as_array().cloned().unwrap_or_default();
    if answer.status() == 200 {
        assert_eq!(
            (&document["schemaVersion"], &document["mediaType"]),
            (&json!(2), &json!(INDEX.1))
        );
        assert_eq!(header(&answer, "content-type"), INDEX.1);
    }
    (answer, entries)
}

async fn referrers(target: Target, all: &mut Transcript) {
    let subject = image(&unique("layer", 700));
    let to = |content: &[u8]| json!({"subject": pointer(MANIFEST.1, content)});
    let base = edited(&subject, to(&subject));
    let typed = edited(
        &base,
        json!({"artifactType": "application/vnd.example.sbom", "annotations": {"of": "this"}, "layers": []}),
    );
    let index = json!({"schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": []});
    let index = edited(index.to_string().as_bytes(), to(&subject));
    let missing = edited(&subject, to(b"never pushed"));
    let of_subject = Digest::of(&subject);
    let of_missing = Digest::of(b"never pushed");
    for (step, content_type, document, subject) in [
        ("referrer", MANIFEST, &base, &of_subject),
        ("other referrer", MANIFEST, &typed, &of_subject),
        ("index as referrer", INDEX, &index, &of_subject),
        ("referrer of what is missing", MANIFEST, &missing, &of_missing),
    ] {
        let created = put(target, Digest::of(document).as_str(), content_type, document).await;
        all.note(step, &created);
        let told = header(&created, "oci-subject");
        assert!(told == subject.as_str() || told.is_empty(), "{step}: {told}");
    }
    let (answer, entries) = list(target, &of_subject, "").await;
    if all.note("referrers", &answer) == 200 {
        let described = |document: &[u8], fields: Value| {
            let pointer = pointer(if document == index { INDEX.1 } else { MANIFEST.1 }, document);
            serde_json::from_slice::<Value>(&edited(pointer.to_string().as_bytes(), fields)).unwrap()
        };
        let mut expected = vec![
            described(&base, json!({"artifactType": "application/vnd.oci.empty.v1+json"})),
            described(
                &typed,
                json!({"artifactType": "application/vnd.example.sbom", "annotations": {"of": "this"}}),
            ),
            described(&index, json!({})),
        ];
        expected.sort_by_key(|entry| entry["digest"].to_string());
        assert_eq!(entries, expected);
    }
    let (answer, entries) = list(target, &of_subject, "?artifactType=application/vnd.example.sbom").await;
    if all.note("referrers of a type", &answer) == 200 {
        assert_eq!(
            (entries.len(), header(&answer, "oci-filters-applied")),
            (1, "artifactType")
        );
    }
    let (answer, entries) = list(target, &of_missing, "").await;
    if all.note("referrers of what is missing", &answer) == 200 {
        assert_eq!(entries.len(), 1);
    }
    let path = format!("{A}/referrers/sha256:baddigeststring");
    all.note(
        "referrers of malformed digest",
        &target.send("GET", &path, &[], b"").await,
    );
}

async fn tags(target: Target, all: &mut Transcript) {
    for tag in ["v1", "v10", "v2", "latest"] {
        target.push_image("conformance/two", Some(tag), b"tagged").await;
    }
    for (step, query) in [
        ("tags", ""),
        ("no tags", "?n=0"),
        ("two tags", "?n=2"),
        ("the next two tags", "?n=2&last=v1"),
        ("tags after one", "?last=v10"),
    ] {
        let got = target.send("GET", &format!("{B}/tags/list{query}"), &[], b"").await;
        all.note(step, &got);
        all.lists.push(serde_json::from_slice(got.body()).unwrap());
    }
}

async fn deletions(target: Target, all: &mut Transcript) {
    let digest = target.push_image("conformance/two", Some("latest"), b"deleted").await;
    let delete = async |path: &str| target.send("DELETE", &format!("{B}/{path}"), &[], b"").await;
    let accept = [("accept", MANIFEST.1)];
    let get = async |path: &str| target.send("GET", &format!("{B}/{path}"), &accept, b"").await;
    all.note("delete tag", &delete("manifests/latest").await);
    all.note("deleted tag", &get("manifests/latest").await);
    let by_digest = format!("manifests/{digest}");
    all.note("manifest of deleted tag", &get(&by_digest).await);
    all.note("delete manifest", &delete(&by_digest).await);
    all.note("deleted manifest", &get(&by_digest).await);
    all.note("delete missing manifest", &delete(&by_digest).await);
    let blob = format!("blobs/{}", Digest::of(b"deleted"));
    all.note("delete blob", &delete(&blob).await);
    all.note("deleted blob", &get(&blob).await);
    all.note("delete missing blob", &delete(&blob).await);
}

#[tokio::test]
async fn the_registry_does_what_the_spec_says() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(open_args(dir.path())).await;
    let transcript = story(server.target()).await;
    let found: Vec<_> = transcript
        .steps
        .iter()
        .map(|(step, status)| (step.as_str(), *status))
        .collect();
    for (found, expected) in found.iter().zip(EXPECTED) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), EXPECTED.len());
    let lists = [
        json!(["latest", "v1", "v10", "v2"]),
        json!([]),
        json!(["latest", "v1"]),
        json!(["v10", "v2"]),
        json!(["v2"]),
    ];
    let lists = lists.map(|tags| json!({"name": "conformance/two", "tags": tags}));
    assert_eq!(transcript.lists, lists);
    server.stop().await;
}

#[tokio::test]
async fn lists_of_tags_have_pages_that_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(open_args(dir.path())).await;
    let target = server.target();
    for tag in ["b", "a", "c", "B"] {
        target.push_image("x", Some(tag), b"layer").await;
    }
    let mut path = "/v2/x/tags/list?n=3".to_owned();
    let mut pages = Vec::new();
    loop {
        let page = server.get(&path).await;
        let document: Value = serde_json::from_slice(page.body()).unwrap();
        pages.push(document["tags"].clone());
        let Some(next) = header(&page, "link").strip_prefix('<') else {
            break;
        };
        path = next.split_once(">; rel=\"next\"").unwrap().0.to_owned();
    }
    assert_eq!(json!(pages), json!([["B", "a", "b"], ["c"]]));
    assert_eq!(
        *server.get("/v2/x/tags/list?n=0").await.body(),
        r#"{"name":"x","tags":[]}"#
    );
    assert_eq!(*server.get("/v2/_catalog").await.body(), r#"{"repositories":["x"]}"#);
    server.stop().await;
}
