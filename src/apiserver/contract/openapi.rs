//! OpenAPI documents as clients fetch them.

use super::*;
use std::io::Read as _;

async fn fetch(c: &Cluster, path: &str, headers: &[(&str, &str)]) -> Answer {
    c.raw(Method::GET, path, &As::Admin, headers, vec![]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_named_by_their_content() {
    let c = Cluster::start().await;
    let index = c.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let found = fetch(&c, url, &[]).await;
    assert_eq!(found.headers["cache-control"], "public, immutable");
    let etag = found.headers["etag"].to_str().unwrap().to_owned();
    assert!(url.ends_with(etag.trim_matches('"')), "{url} {etag}");
    assert_eq!(found.expect(200)["openapi"], "3.0.0");
    let known = fetch(&c, "/openapi/v3/apis/apps/v1", &[("if-none-match", &etag)]).await;
    assert_eq!((known.code, known.bytes.len()), (304, 0));
    let outdated = fetch(&c, "/openapi/v3/apis/apps/v1?hash=ABC", &[]).await;
    assert_eq!(
        (outdated.code, outdated.headers["location"].to_str().unwrap()),
        (301, url)
    );
    assert_eq!(fetch(&c, "/openapi/v3/apis/apps/v9", &[]).await.code, 404);
    let packed = fetch(&c, "/openapi/v3/api/v1", &[("accept-encoding", "gzip")]).await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    let mut plain = String::new();
    flate2::read::GzDecoder::new(&packed.bytes[..])
        .read_to_string(&mut plain)
        .unwrap();
    assert!(
        serde_json::from_str::<Value>(&plain).unwrap()["components"]["schemas"]["io.k8s.api.core.v1.Pod"].is_object()
    );
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn version_two_is_there_in_both_encodings() {
    let c = Cluster::start().await;
    let json = fetch(&c, "/openapi/v2", &[("accept", "application/json")]).await;
    let etag = json.headers["etag"].to_str().unwrap().to_owned();
    assert!(json.expect(200)["definitions"]["io.k8s.api.apps.v1.Deployment"].is_object());
    let known = fetch(&c, "/openapi/v2", &[("if-none-match", &etag)]).await;
    assert_eq!(known.code, 304);
    let asked = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let proto = fetch(&c, "/openapi/v2", &[("accept", asked)]).await;
    assert_eq!(
        proto.headers["content-type"],
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    );
    assert!(proto.bytes.starts_with(b"\x0a\x032.0"));
    assert_eq!(fetch(&c, "/openapi/v2", &[("accept", "text/html")]).await.code, 406);
    c.end().await;
}
