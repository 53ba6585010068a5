//! Waiting for an object, through whatever happens to the API server meanwhile: while the control plane is replaced it does not answer,
//! and its watches end.

use futures::StreamExt as _;
use kube::{
    Api, Resource,
    runtime::{wait::Condition, watcher::watch_object},
};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, pin::pin, time::Duration};

/// How long the server is left alone after it did not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// Waits until an object, or that there is none, is as `condition` says; what it is then. This has no end of its own: the caller knows
/// how long to wait, and what to tell if that was in vain.
pub(crate) async fn until<K>(api: Api<K>, name: &str, condition: impl Condition<K>) -> Option<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut seen = pin!(watch_object(api, name));
    loop {
        match seen.next().await {
            Some(Ok(object)) if condition.matches_object(object.as_ref()) => return object,
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::info!(name, %error, "a watch ended and begins again");
                tokio::time::sleep(PAUSE).await;
            }
            // A watch has no end; if that ever changes, the caller's limit is what counts.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use k8s_openapi::api::core::v1::Node;
    use kube::{Client, client::Body};
    use serde_json::json;
    use std::{
        io,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    /// A server that cannot be reached at first, then refuses, then has no such object, and then has it.
    fn answer(turn: usize) -> io::Result<Response<Body>> {
        let (status, items) = match turn {
            0 => return Err(io::Error::other("nobody listens")),
            1 => (503, json!([])),
            2 | 3 => (200, json!([])),
            _ => (200, json!([{"metadata": {"name": "n1", "resourceVersion": "8"}}])),
        };
        // What would be a watch ends at once with something that is none.
        let list =
            json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "9"}, "items": items});
        let list = if turn == 3 {
            json!({"type": "ERROR", "object": {"code": 410, "message": "too old", "reason": "Expired", "status": "Failure"}})
        } else {
            list
        };
        let body = Body::from(serde_json::to_vec(&list).unwrap());
        Ok(Response::builder().status(status).body(body).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_is_waited_for_while_the_server_does_not_answer_or_forgets_the_watch() {
        let turns = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&turns);
        let server = tower::service_fn(move |_: Request<Body>| {
            let answer = answer(asked.fetch_add(1, Ordering::SeqCst));
            async move { answer }
        });
        let api: Api<Node> = Api::all(Client::new(server, "default"));
        let there = |node: Option<&Node>| node.is_some();
        let waited = tokio::time::timeout(Duration::from_secs(60), until(api, "n1", there));
        let node = waited.await.unwrap().unwrap();
        assert_eq!(node.metadata.name.as_deref(), Some("n1"));
        assert!(turns.load(Ordering::SeqCst) >= 5);
    }
}
