//! Who may do what: superusers, then the Node authorizer, then RBAC. Nobody denies; what nobody allows is refused.

mod node;
pub mod policy;
mod rbac;

use std::sync::Arc;

pub use node::node_name;
pub use rbac::{Rbac, Rule};

use crate::authn::{MASTERS, User};
use crate::cache::Cache;
use crate::error::{ApiError, Result};

/// One action, as authorizers see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// API verb, or lower-case HTTP method.
    pub verb: String,
    /// Whether a resource is meant; otherwise only `path` counts.
    pub resource_request: bool,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace.
    pub namespace: String,
    /// Object name.
    pub name: String,
    /// Path of a non-resource request.
    pub path: String,
    /// The field selector asked for, which narrows what a node may list.
    pub field_selector: String,
}

/// An authorizer's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, and why.
    Allow(String),
    /// Not allowed by this authorizer.
    NoOpinion(String),
}

/// One authorizer of `--authorization-mode`.
enum Mode {
    Node,
    Rbac,
    AlwaysAllow,
}

/// A mode this server does not have.
#[derive(Debug, thiserror::Error)]
#[error("unknown authorization mode {0:?}; known: Node, RBAC, AlwaysAllow")]
pub struct UnknownMode(String);

/// All authorizers in order.
pub struct Authorizer {
    modes: Vec<Mode>,
    cache: Arc<Cache>,
    /// The RBAC rules in force.
    pub rbac: Rbac,
}

impl Authorizer {
    /// Builds the chain.
    ///
    /// # Errors
    /// [`UnknownMode`].
    pub fn new(modes: &[String], cache: Arc<Cache>) -> Result<Self, UnknownMode> {
        let modes = modes
            .iter()
            .map(|m| match m.as_str() {
                "Node" => Ok(Mode::Node),
                "RBAC" => Ok(Mode::Rbac),
                "AlwaysAllow" => Ok(Mode::AlwaysAllow),
                other => Err(UnknownMode(other.to_owned())),
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            modes,
            rbac: Rbac::new(cache.clone()),
            cache,
        })
    }

    /// Asks all authorizers.
    pub fn decide(&self, user: &User, a: &Attributes) -> Decision {
        if user.in_group(MASTERS) {
            return Decision::Allow(String::new());
        }
        let mut reasons = Vec::new();
        for mode in &self.modes {
            let decision = match mode {
                Mode::Node => node::decide(&self.cache, user, a),
                Mode::Rbac => self.rbac.decide(user, a),
                Mode::AlwaysAllow => Decision::Allow(String::new()),
            };
            match decision {
                Decision::Allow(_) => return decision,
                Decision::NoOpinion(why) if !why.is_empty() => reasons.push(why),
                Decision::NoOpinion(_) => {}
            }
        }
        Decision::NoOpinion(reasons.join(", "))
    }

    /// Refuses what nobody allows.
    ///
    /// # Errors
    /// 403 with the text clients know.
    pub fn require(&self, user: &User, a: &Attributes) -> Result<()> {
        match self.decide(user, a) {
            Decision::Allow(_) => Ok(()),
            Decision::NoOpinion(why) => Err(forbidden(user, a, &why)),
        }
    }
}

fn forbidden(user: &User, a: &Attributes, why: &str) -> ApiError {
    let tail = if why.is_empty() {
        String::new()
    } else {
        format!(": {why}")
    };
    if !a.resource_request {
        let message = format!(
            "forbidden: User {:?} cannot {} path {:?}{tail}",
            user.name, a.verb, a.path
        );
        let mut e = ApiError::new(403, "Forbidden", message);
        e.details = serde_json::json!({});
        return e;
    }
    let resource = if a.subresource.is_empty() {
        a.resource.clone()
    } else {
        format!("{}/{}", a.resource, a.subresource)
    };
    let scope = if a.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", a.namespace)
    };
    let text = format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {scope}{tail}",
        user.name, a.verb, a.group
    );
    ApiError::forbidden(&a.group, &a.resource, &a.name, &text)
}
