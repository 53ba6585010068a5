//! The `kubernetes` Service in `default`, and the addresses behind it: every master keeps a key with a short life in
//! etcd, and all of them write the union into Endpoints and EndpointSlice.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{ensure, kind};
use crate::app::App;
use crate::error::Result;
use crate::objects::{self, Modify};
use crate::rest::write::Writer;
use crate::store::prefix_end;

const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";
const MASTERS: &str = "/registry/masterleases/";
/// Life of a master's key in seconds; it is renewed every ten.
const TTL: i64 = 25;

fn own_key(app: &App) -> String {
    format!("{MASTERS}{}", app.args.advertise_address)
}

/// Renews this server's key and brings Service, Endpoints and EndpointSlice up to date.
///
/// # Errors
/// When the store or the objects refuse.
pub(super) async fn keep(app: &App) -> Result<()> {
    app.etcd
        .put_alive(&own_key(app), app.args.secure_port.to_string().into_bytes(), TTL)
        .await?;
    let first = std::net::Ipv4Addr::from(u32::from(app.ranges.network) + 1);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": first.to_string(), "clusterIPs": [first.to_string()],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": app.args.secure_port}],
        },
    });
    ensure(app, kind("", "v1", "services")?, service).await?;
    publish(app).await
}

/// Withdraws this server's address.
///
/// # Errors
/// As [`keep`].
pub(super) async fn leave(app: &App) -> Result<()> {
    app.etcd.remove(&own_key(app)).await?;
    publish(app).await
}

async fn publish(app: &App) -> Result<()> {
    let range = app.etcd.range(MASTERS, &prefix_end(MASTERS), 0, 0).await?;
    let addresses: BTreeSet<IpAddr> = range
        .items
        .iter()
        .filter_map(|i| i.key.strip_prefix(MASTERS)?.parse().ok())
        .collect();
    let port = json!({"name": "https", "port": app.args.secure_port, "protocol": "TCP"});
    let listed: Vec<Value> = addresses.iter().map(|a| json!({"ip": a.to_string()})).collect();
    let subsets = if listed.is_empty() {
        json!([])
    } else {
        json!([{"addresses": listed, "ports": [port]}])
    };
    write(
        app,
        "",
        "endpoints",
        json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": subsets,
        }),
        &["subsets"],
    )
    .await?;
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|a| json!({"addresses": [a.to_string()], "conditions": {"ready": true}}))
        .collect();
    let family = if addresses.iter().any(IpAddr::is_ipv6) {
        "IPv6"
    } else {
        "IPv4"
    };
    write(
        app,
        "discovery.k8s.io",
        "endpointslices",
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": NAME}},
            "addressType": family, "endpoints": endpoints, "ports": [port],
        }),
        &["endpoints", "ports"],
    )
    .await
}

/// Creates an object, or makes the named fields what they should be.
async fn write(app: &App, group: &str, plural: &str, wanted: Value, fields: &[&str]) -> Result<()> {
    let kind = kind(group, "v1", plural)?;
    let outcome = objects::modify(app, kind, NAMESPACE, NAME, false, |current| {
        let mut new = current.clone();
        for f in fields {
            new[*f] = wanted[*f].clone();
        }
        if new == *current {
            return Ok(Modify::Keep);
        }
        Writer::server(app).note(kind, None, current, &mut new);
        Ok(Modify::Write(new))
    })
    .await;
    match outcome {
        Err(e) if e.code == 404 => Writer::server(app).create(kind, wanted, false).await.map(|_| ()),
        done => done.map(|_| ()),
    }
}
