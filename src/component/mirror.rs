//! A local copy of one kind for components that compute from the whole state: a missed event can then never matter.

use std::fmt::Debug;
use std::sync::Arc;

use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::Informer;

/// Starts to keep a copy of all objects that `config` selects. `prune` drops the fields that the component does not need;
/// `changed` is told when the first list is complete, and of every change from then on.
///
/// The copy follows until the runtime ends. What goes wrong is logged and tried again for ever; ask
/// [`Informer::synced`] for the first complete list, because before it the copy holds only a part.
pub fn mirror<K>(api: Api<K>, config: watcher::Config, changed: Arc<Notify>, prune: fn(&mut K)) -> Arc<Informer<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let informer = Informer::required(K::plural(&()), prune);
    let (told, complete) = (Arc::clone(&changed), informer.completeness());
    informer.on_change(move |_| {
        if *complete.borrow() {
            told.notify_one();
        }
    });
    let mut complete = informer.completeness();
    tokio::spawn(async move {
        if complete.wait_for(|done| *done).await.is_ok() {
            changed.notify_one();
        }
    });
    tokio::spawn(Arc::clone(&informer).run(api, config, CancellationToken::new()));
    informer
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use http::{Request, Response};
    use k8s_openapi::api::core::v1::Node;
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "resourceVersion": "1", "uid": name}})
    }

    /// An API server without nodes' kind at first, then with two nodes in two pages, then silent.
    fn answer(turn: usize, query: &str) -> Option<(u16, Value)> {
        let list = |name: &str, more: &str| {
            json!({"apiVersion": "v1", "kind": "NodeList", "items": [node(name)],
                   "metadata": {"resourceVersion": "1", "continue": more}})
        };
        match turn {
            0 | 1 => Some((
                404,
                json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "no such kind"}),
            )),
            _ if query.contains("watch=true") => None,
            _ if query.contains("continue=") => Some((200, list("b", ""))),
            _ => Some((200, list("a", "next"))),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_component_is_told_once_the_first_list_is_complete_and_an_absent_kind_is_waited_for() {
        let turns = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&turns);
        let server = tower::service_fn(move |request: Request<Body>| {
            let answer = answer(
                asked.fetch_add(1, Ordering::SeqCst),
                request.uri().query().unwrap_or_default(),
            );
            async move {
                let Some((status, body)) = answer else {
                    return std::future::pending().await;
                };
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
            }
        });
        let changed = Arc::new(Notify::new());
        let client = Client::new(server, "default");
        let nodes: Arc<Informer<Node>> = mirror(
            Api::all(client),
            watcher::Config::default(),
            Arc::clone(&changed),
            |_| (),
        );
        tokio::time::timeout(Duration::from_secs(60), changed.notified())
            .await
            .unwrap();
        assert!(nodes.is_synced());
        assert_eq!(nodes.len(), 2);
        assert!(turns.load(Ordering::SeqCst) >= 4);
    }
}
