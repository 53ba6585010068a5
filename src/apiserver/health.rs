//! `/livez`, `/readyz`, `/healthz`: named checks, each one reachable by its own path.

use std::collections::BTreeMap;
use std::sync::RwLock;
use std::time::Duration;

use crate::app::App;
use crate::request::Query;
use crate::server::{Response, negotiated};

/// How long the store may take to answer a probe.
const PROBE: Duration = Duration::from_secs(2);

/// Work to be done once after the start.
#[derive(Default)]
pub struct Hooks(RwLock<BTreeMap<&'static str, bool>>);

impl Hooks {
    /// Hooks by name, none done.
    pub fn new(names: &[&'static str]) -> Self {
        Self(RwLock::new(names.iter().map(|n| (*n, false)).collect()))
    }

    /// One of them is done.
    pub fn done(&self, name: &'static str) {
        self.0
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(name, true);
    }

    /// All of them, with whether they are done.
    pub fn all(&self) -> Vec<(&'static str, bool)> {
        self.0
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .iter()
            .map(|(k, v)| (*k, *v))
            .collect()
    }
}

struct Check {
    name: String,
    failure: Option<&'static str>,
}

async fn checks(app: &App, endpoint: &str) -> Vec<Check> {
    let mut out = Vec::new();
    let mut add = |name: &str, ok: bool, why: &'static str| {
        out.push(Check {
            name: name.to_owned(),
            failure: (!ok).then_some(why),
        });
    };
    add("ping", true, "");
    add("log", true, "");
    // Whether this process is alive does not depend on etcd: restarting it would not bring etcd back.
    if endpoint != "livez" {
        let answered = matches!(tokio::time::timeout(PROBE, app.etcd.revision()).await, Ok(Ok(_)));
        add("etcd", answered, "the store does not answer");
        add("etcd-readiness", answered, "the store does not answer");
        add("informer-sync", app.cache.synced(), "the watch caches are not filled");
    }
    for (name, done) in app.hooks.all() {
        if endpoint != "livez" {
            add(&format!("poststarthook/{name}"), done, "not finished");
        }
    }
    if endpoint == "readyz" {
        add("shutdown", !app.stop.is_cancelled(), "the server is shutting down");
    }
    out
}

/// Answers one of the three endpoints or a check below it; `None` for an unknown check.
pub async fn serve(app: &App, path: &str, query: &Query) -> Option<Response> {
    let (endpoint, only) = path
        .trim_matches('/')
        .split_once('/')
        .unwrap_or((path.trim_matches('/'), ""));
    let mut checks = checks(app, endpoint).await;
    if !only.is_empty() {
        checks.retain(|c| c.name == only);
        if checks.is_empty() {
            return None;
        }
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut text = String::new();
    let mut failed = false;
    for c in &checks {
        match c.failure {
            _ if excluded.contains(&c.name.as_str()) => text.push_str(&format!("[+]{} excluded: ok\n", c.name)),
            None => text.push_str(&format!("[+]{} ok\n", c.name)),
            Some(why) => {
                failed = true;
                tracing::debug!(check = c.name, why, "health check failed");
                text.push_str(&format!("[-]{} failed: {why}\n", c.name));
            }
        }
    }
    let (code, body) = match (failed, query.has("verbose")) {
        (true, _) => (500, format!("{text}{endpoint} check failed\n")),
        (false, true) => (200, format!("{text}{endpoint} check passed\n")),
        (false, false) => (200, "ok".to_owned()),
    };
    let mut response = negotiated(code, "text/plain; charset=utf-8", body.into());
    response
        .headers_mut()
        .insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    Some(response)
}
