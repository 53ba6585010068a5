//! Nodes that we hold: cordoned by us, with a note of it, so that whoever goes on after an interruption knows that nobody else wants them so.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use serde_json::{Value, json};

/// The note; its value says who holds the node.
pub(crate) const NOTE: &str = "installer.internal/held";

/// Whether an installer has cordoned the node.
pub(crate) fn is_held(node: &Node) -> bool {
    node.annotations().contains_key(NOTE)
}

/// Whether nothing new is placed on the node.
pub(crate) fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
}

/// The patch that cordons a node and notes that it was `who`; nothing if somebody else has cordoned it, or we have already.
pub(crate) fn take(node: &Node, who: &str) -> Option<Value> {
    (!is_cordoned(node)).then(|| json!({"metadata": {"annotations": {NOTE: who}}, "spec": {"unschedulable": true}}))
}

/// The patch that lets a node go; nothing if it is not ours.
pub(crate) fn release(node: &Node) -> Option<Value> {
    is_held(node).then(|| json!({"metadata": {"annotations": {NOTE: null}}, "spec": {"unschedulable": null}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_cordoned_is_neither_taken_nor_let_go() {
        let node = |held: bool, cordoned: bool| {
            let mut node = Node::default();
            if held {
                node.annotations_mut().insert(NOTE.to_owned(), "x".to_owned());
            }
            node.spec.get_or_insert_default().unschedulable = cordoned.then_some(true);
            node
        };
        // held by us, cordoned → taken, let go
        for (held, cordoned, taken, released) in [
            (false, false, true, false),
            (false, true, false, false),
            (true, true, false, true),
            (true, false, true, true),
        ] {
            let node = node(held, cordoned);
            let seen = (take(&node, "me").is_some(), release(&node).is_some());
            assert_eq!(seen, (taken, released), "held {held}, cordoned {cordoned}");
        }
    }
}
