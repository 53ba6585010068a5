//! Lists and watches: what informers live on.

use super::*;
use serde_json::json;

fn names(list: &Value) -> Vec<String> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_one_revision_and_count_what_is_left() {
    let c = Cluster::start().await;
    let maps = "/api/v1/namespaces/kube-public/configmaps";
    for i in 0..5 {
        c.post(maps, config_map(&format!("m{i}"))).await.expect(201);
    }
    let first = c.get(&format!("{maps}?limit=2")).await.expect(200);
    assert_eq!(names(&first), ["m0", "m1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    c.delete(&format!("{maps}/m3"), json!({})).await.expect(200);
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    let second = c.get(&format!("{maps}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&second), ["m2", "m3"], "the deletion came after the first page");
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let last = second["metadata"]["continue"].as_str().unwrap().to_owned();
    let third = c.get(&format!("{maps}?limit=2&continue={last}")).await.expect(200);
    assert_eq!(names(&third), ["m4"]);
    assert!(third["metadata"]["continue"].is_null());
    let rev = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = c
        .get(&format!("{maps}?resourceVersion={rev}&resourceVersionMatch=Exact"))
        .await
        .expect(200);
    assert_eq!(names(&exact).len(), 5);
    c.server
        .as_ref()
        .unwrap()
        .app
        .etcd
        .compact(c.server.as_ref().unwrap().app.cache.progress())
        .await
        .unwrap();
    let expired = c.get(&format!("{maps}?limit=2&continue={token}")).await.expect(410);
    assert_eq!(expired["reason"], "Expired");
    let fresh = expired["metadata"]["continue"].as_str().unwrap();
    let rest = c.get(&format!("{maps}?limit=2&continue={fresh}")).await.expect(200);
    assert_eq!(names(&rest), ["m2", "m4"], "inconsistent, but going on");
    c.get(&format!("{maps}?resourceVersion={rev}&resourceVersionMatch=Exact"))
        .await
        .expect(410);
    let future = c.get(&format!("{maps}?resourceVersion=999999999")).await;
    assert!(future.headers.contains_key("retry-after"));
    assert_eq!(
        future.expect(504)["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_where_it_was_and_selections_are_left() {
    let c = Cluster::start().await;
    let list = c.get(MAPS).await.expect(200);
    let rev = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut map = config_map("a");
    map["metadata"]["labels"] = json!({"x": "y"});
    c.post(MAPS, map).await.expect(201);
    c.post(MAPS, config_map("b")).await.expect(201);
    let mut all = c.watch(&format!("{MAPS}?watch=true&resourceVersion={rev}")).await;
    let mut chosen = c
        .watch(&format!("{MAPS}?watch=true&resourceVersion={rev}&labelSelector=x%3Dy"))
        .await;
    let mut named = c
        .watch(&format!(
            "{MAPS}?watch=true&resourceVersion={rev}&fieldSelector=metadata.name%3Db"
        ))
        .await;
    let merge = json!({"metadata": {"labels": {"x": "z"}}});
    let moved = c
        .patch(&format!("{MAPS}/a"), "application/merge-patch+json", merge)
        .await
        .expect(200);
    c.delete(&format!("{MAPS}/b"), json!({})).await.expect(200);
    for expected in [
        pair("ADDED", "a"),
        pair("ADDED", "b"),
        pair("MODIFIED", "a"),
        pair("DELETED", "b"),
    ] {
        assert_eq!(all.brief().await, expected);
    }
    assert_eq!(chosen.brief().await, pair("ADDED", "a"));
    let left = chosen.next().await.unwrap();
    assert_eq!(left["type"], "DELETED");
    assert_eq!(
        left["object"]["metadata"]["resourceVersion"],
        moved["metadata"]["resourceVersion"]
    );
    assert_eq!(named.brief().await, pair("ADDED", "b"));
    assert_eq!(named.brief().await, pair("DELETED", "b"));
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_before_the_servers_memory_is_told_to_list_again() {
    let mut c = Cluster::start().await;
    let made = c.post(MAPS, config_map("a")).await.expect(201);
    c.restart().await;
    assert_eq!(
        c.get(&format!("{MAPS}/a")).await.expect(200),
        made,
        "what was stored is still there"
    );
    let mut old = c.watch(&format!("{MAPS}?watch=true&resourceVersion=1")).await;
    let gone = old.next().await.unwrap();
    assert_eq!(
        (gone["type"].as_str(), gone["object"]["code"].as_i64()),
        (Some("ERROR"), Some(410))
    );
    assert!(old.next().await.is_none());
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_list_ends_with_an_annotated_bookmark() {
    let c = Cluster::start().await;
    c.post(MAPS, config_map("a")).await.expect(201);
    c.post(MAPS, config_map("b")).await.expect(201);
    let query =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=2";
    let mut w = c.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(w.brief().await, pair("ADDED", "a"));
    assert_eq!(w.brief().await, pair("ADDED", "b"));
    let bookmark = w.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let rev: i64 = bookmark["object"]["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(rev > 1);
    c.post(MAPS, config_map("c")).await.expect(201);
    assert_eq!(w.brief().await, pair("ADDED", "c"));
    assert_eq!(
        w.next().await.unwrap()["type"],
        "BOOKMARK",
        "one more when the time is over"
    );
    assert!(w.next().await.is_none());
    let bad = c.get(&format!("{MAPS}?watch=true&sendInitialEvents=true")).await;
    assert_eq!(bad.code, 422);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_metadata_are_listed_and_watched() {
    let c = Cluster::start().await;
    c.post(MAPS, config_map("a")).await.expect(201);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let accept = |a: &'static str| [("accept", a)];
    let t = c
        .raw(
            Method::GET,
            MAPS,
            &As::Admin,
            &accept("application/json;as=Table;v=v1;g=meta.k8s.io"),
            vec![],
        )
        .await
        .expect(200);
    assert_eq!(t["kind"], "Table");
    assert_eq!(t["columnDefinitions"][0]["name"], "Name");
    assert_eq!(t["rows"][0]["cells"][0], "a");
    let partial = accept("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let p = c.raw(Method::GET, MAPS, &As::Admin, &partial, vec![]).await.expect(200);
    assert_eq!(p["kind"], "PartialObjectMetadataList");
    assert!(p["items"][0]["data"].is_null());
    c.raw(Method::GET, MAPS, &As::Admin, &accept("image/png"), vec![])
        .await
        .expect(406);
    let mut w = c.watch_as(&format!("{MAPS}?watch=true"), table).await;
    let e = w.next().await.unwrap();
    assert_eq!(
        (e["type"].as_str(), e["object"]["rows"][0]["cells"][0].as_str()),
        (Some("ADDED"), Some("a"))
    );
    assert!(!e["object"]["columnDefinitions"].as_array().unwrap().is_empty());
    c.post(MAPS, config_map("b")).await.expect(201);
    let e = w.next().await.unwrap();
    assert!(
        e["object"]["columnDefinitions"].as_array().is_none_or(Vec::is_empty),
        "columns travel once"
    );
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_goes_in_and_out() {
    let c = Cluster::start().await;
    let mut map = config_map("p");
    map["metadata"]["namespace"] = "default".into();
    let bytes = api::proto::encode(&map).unwrap();
    let media = crate::rest::format::PROTOBUF;
    let headers = [("content-type", media), ("accept", media)];
    let made = c.raw(Method::POST, MAPS, &As::Admin, &headers, bytes).await;
    assert_eq!(
        (made.code, made.headers["content-type"].to_str().unwrap()),
        (201, media)
    );
    assert_eq!(api::proto::decode(&made.bytes).unwrap()["metadata"]["name"], "p");
    let list = c.raw(Method::GET, MAPS, &As::Admin, &headers, vec![]).await;
    assert_eq!(api::proto::decode(&list.bytes).unwrap()["items"][0]["data"]["k"], "v");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_is_deleted_by_selector() {
    let c = Cluster::start().await;
    for (name, label) in [("a", "y"), ("b", "n"), ("c", "y")] {
        let mut m = config_map(name);
        m["metadata"]["labels"] = json!({"x": label});
        c.post(MAPS, m).await.expect(201);
    }
    let gone = c
        .delete(&format!("{MAPS}?labelSelector=x%3Dy"), json!({}))
        .await
        .expect(200);
    assert_eq!(names(&gone), ["a", "c"]);
    assert_eq!(names(&c.get(MAPS).await.expect(200)), ["b"]);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_lists_are_compressed_for_those_who_ask() {
    let c = Cluster::start().await;
    let mut m = config_map("big");
    m["data"]["k"] = "x".repeat(200 << 10).into();
    c.post(MAPS, m).await.expect(201);
    let packed = c
        .raw(Method::GET, MAPS, &As::Admin, &[("accept-encoding", "gzip")], vec![])
        .await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    assert!(packed.bytes.len() < 64 << 10);
    assert!(c.get(MAPS).await.bytes.len() > 200 << 10);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_watches_cleanly() {
    let c = Cluster::start().await;
    let mut w = c.watch(&format!("{MAPS}?watch=true&allowWatchBookmarks=true")).await;
    c.stop.cancel();
    assert_eq!(w.next().await.unwrap()["type"], "BOOKMARK");
    assert!(w.next().await.is_none());
    c.end().await;
}
