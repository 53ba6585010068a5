//! Role-based access control, evaluated from the watch caches. The rules are compiled once per change of any role or
//! binding, with bindings indexed by subject, so that a decision looks only at what concerns its user.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use api::metadata::strings;
use serde_json::Value;

use super::{Attributes, Decision};
use crate::authn::User;
use crate::cache::{Cache, KindCache};

const GROUP: &str = "rbac.authorization.k8s.io";

/// One rule of a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Verbs or `*`.
    pub verbs: Vec<String>,
    /// API groups or `*`.
    pub groups: Vec<String>,
    /// `resource`, `resource/subresource`, `*/subresource` or `*`.
    pub resources: Vec<String>,
    /// Object names; empty for any.
    pub names: Vec<String>,
    /// Paths of non-resource requests; a final `*` matches any tail.
    pub urls: Vec<String>,
}

impl Rule {
    /// Reads a PolicyRule.
    pub fn from_value(v: &Value) -> Self {
        Self {
            verbs: strings(&v["verbs"]),
            groups: strings(&v["apiGroups"]),
            resources: strings(&v["resources"]),
            names: strings(&v["resourceNames"]),
            urls: strings(&v["nonResourceURLs"]),
        }
    }

    /// Whether the rule allows an action.
    pub fn allows(&self, a: &Attributes) -> bool {
        if !has(&self.verbs, &a.verb) {
            return false;
        }
        if !a.resource_request {
            return self.urls.iter().any(|u| {
                u == "*" || *u == a.path || u.strip_suffix('*').is_some_and(|prefix| a.path.starts_with(prefix))
            });
        }
        has(&self.groups, &a.group)
            && self
                .resources
                .iter()
                .any(|r| resource_matches(r, &a.resource, &a.subresource))
            && (self.names.is_empty() || self.names.contains(&a.name))
    }

    /// Whether everything that `other` allows is allowed by one of `rules`; for the escalation check.
    pub fn covered_by(&self, rules: &[Rule]) -> bool {
        let one = |v: &[String]| -> Vec<String> { if v.is_empty() { vec![String::new()] } else { v.to_vec() } };
        for verb in &self.verbs {
            for url in &self.urls {
                let ok = rules.iter().any(|r| {
                    has(&r.verbs, verb)
                        && r.urls
                            .iter()
                            .any(|u| u == url || u.strip_suffix('*').is_some_and(|p| url.starts_with(p)))
                });
                if !ok {
                    return false;
                }
            }
            for group in &self.groups {
                for resource in &self.resources {
                    for name in one(&self.names) {
                        let ok = rules.iter().any(|r| {
                            let (res, sub) = resource.split_once('/').unwrap_or((resource, ""));
                            has(&r.verbs, verb)
                                && has(&r.groups, group)
                                && r.resources
                                    .iter()
                                    .any(|x| x == resource || resource_matches(x, res, sub))
                                && (r.names.is_empty() || (!name.is_empty() && r.names.contains(&name)))
                        });
                        if !ok {
                            return false;
                        }
                    }
                }
            }
        }
        true
    }
}

fn has(list: &[String], word: &str) -> bool {
    list.iter().any(|x| x == "*" || x == word)
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    match rule.split_once('/') {
        _ if rule == "*" => true,
        None => rule == resource && subresource.is_empty(),
        Some((r, s)) => (r == "*" || r == resource) && !subresource.is_empty() && s == subresource,
    }
}

type Rules = Arc<Vec<Rule>>;

#[derive(Debug, Clone)]
struct Grant {
    /// Namespace of the RoleBinding; empty for ClusterRoleBindings.
    namespace: String,
    rules: Rules,
    reason: String,
}

#[derive(Default)]
struct Index {
    versions: Vec<(u64, i64)>,
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

/// The RBAC authorizer.
pub struct Rbac {
    cache: Arc<Cache>,
    index: RwLock<Arc<Index>>,
}

impl Rbac {
    /// An authorizer over the caches.
    pub fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            index: RwLock::default(),
        }
    }

    fn kinds(&self) -> Vec<Arc<KindCache>> {
        ["clusterroles", "roles", "clusterrolebindings", "rolebindings"]
            .iter()
            .filter_map(|p| self.cache.kind(GROUP, p))
            .collect()
    }

    fn index(&self) -> Arc<Index> {
        let kinds = self.kinds();
        let versions: Vec<_> = kinds.iter().map(|k| k.version()).collect();
        let current = self
            .index
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        if current.versions == versions {
            return current;
        }
        let fresh = Arc::new(self.compile(versions));
        *self.index.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh.clone();
        fresh
    }

    fn objects(&self, plural: &str) -> Vec<Value> {
        match self.cache.kind(GROUP, plural) {
            Some(k) => k.list("", 0, |_| true).items.iter().map(|o| o.value()).collect(),
            None => Vec::new(),
        }
    }

    fn compile(&self, versions: Vec<(u64, i64)>) -> Index {
        // An aggregated role has the rules that are written in it, like any other.
        let mut roles: HashMap<(String, String), Rules> = HashMap::new();
        for r in ["clusterroles", "roles"].iter().flat_map(|p| self.objects(p)) {
            roles.insert(
                (text(&r["metadata"]["namespace"]), text(&r["metadata"]["name"])),
                rules_of(&r),
            );
        }
        let mut index = Index {
            versions,
            ..Index::default()
        };
        for (plural, cluster) in [("clusterrolebindings", true), ("rolebindings", false)] {
            for b in self.objects(plural) {
                let namespace = text(&b["metadata"]["namespace"]);
                let role = text(&b["roleRef"]["name"]);
                let is_cluster_role = b["roleRef"]["kind"] == "ClusterRole";
                let role_namespace = if is_cluster_role {
                    String::new()
                } else {
                    namespace.clone()
                };
                let Some(rules) = roles.get(&(role_namespace, role.clone())).cloned() else {
                    continue;
                };
                let kind = if cluster { "ClusterRoleBinding" } else { "RoleBinding" };
                let name = text(&b["metadata"]["name"]);
                let reason = format!(
                    "RBAC: allowed by {kind} {name:?} of {} {role:?}",
                    text(&b["roleRef"]["kind"])
                );
                let grant = Grant {
                    namespace: namespace.clone(),
                    rules,
                    reason,
                };
                for s in b["subjects"].as_array().into_iter().flatten() {
                    index.add(s, &namespace, &grant);
                }
            }
        }
        index
    }

    /// The RBAC answer.
    pub fn decide(&self, user: &User, a: &Attributes) -> Decision {
        let index = self.index();
        for grant in index.grants(user, &a.namespace, a.resource_request) {
            if grant.rules.iter().any(|r| r.allows(a)) {
                return Decision::Allow(grant.reason.clone());
            }
        }
        Decision::NoOpinion(String::new())
    }

    /// All rules a user has in a namespace (and cluster-wide).
    pub fn rules(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let index = self.index();
        index
            .grants(user, namespace, true)
            .flat_map(|g| g.rules.iter().cloned())
            .collect()
    }

    /// The rules of a role reference, for the escalation check; `None` if there is no such role.
    pub fn role_rules(&self, kind: &str, namespace: &str, name: &str) -> Option<Vec<Rule>> {
        let (plural, namespace) = match kind {
            "ClusterRole" => ("clusterroles", ""),
            _ => ("roles", namespace),
        };
        let role = self.cache.kind(GROUP, plural)?.get(namespace, name)?;
        Some(rules_of(&role.value()).as_ref().clone())
    }
}

impl Index {
    fn add(&mut self, subject: &Value, binding_namespace: &str, grant: &Grant) {
        let name = text(&subject["name"]);
        let (map, key) = match subject["kind"].as_str() {
            Some("User") => (&mut self.users, name),
            Some("Group") => (&mut self.groups, name),
            Some("ServiceAccount") => {
                let ns = subject["namespace"]
                    .as_str()
                    .filter(|n| !n.is_empty())
                    .unwrap_or(binding_namespace);
                (&mut self.users, format!("system:serviceaccount:{ns}:{name}"))
            }
            _ => return,
        };
        map.entry(key).or_default().push(grant.clone());
    }

    fn grants<'a>(&'a self, user: &'a User, namespace: &'a str, resource: bool) -> impl Iterator<Item = &'a Grant> {
        let of_groups = user.groups.iter().filter_map(|g| self.groups.get(g)).flatten();
        let own = self.users.get(&user.name).into_iter().flatten();
        own.chain(of_groups)
            .filter(move |g| g.namespace.is_empty() || (resource && g.namespace == namespace && !namespace.is_empty()))
    }
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_default().to_owned()
}

fn rules_of(role: &Value) -> Rules {
    Arc::new(
        role["rules"]
            .as_array()
            .into_iter()
            .flatten()
            .map(Rule::from_value)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn action(verb: &str, resource: &str, sub: &str, name: &str) -> Attributes {
        Attributes {
            verb: verb.into(),
            resource_request: true,
            resource: resource.into(),
            subresource: sub.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    fn rule(resources: &[&str], names: &[&str]) -> Rule {
        Rule::from_value(&json!({"verbs": ["get"], "apiGroups": [""], "resources": resources, "resourceNames": names}))
    }

    #[test]
    fn a_resource_does_not_include_its_subresources() {
        assert!(rule(&["pods"], &[]).allows(&action("get", "pods", "", "a")));
        assert!(!rule(&["pods"], &[]).allows(&action("get", "pods", "log", "a")));
        assert!(rule(&["pods/log"], &[]).allows(&action("get", "pods", "log", "a")));
        assert!(!rule(&["pods/log"], &[]).allows(&action("get", "pods", "", "a")));
        assert!(rule(&["*/scale"], &[]).allows(&action("get", "deployments", "scale", "a")));
        assert!(rule(&["*"], &[]).allows(&action("get", "pods", "exec", "a")));
        assert!(!rule(&["*"], &[]).allows(&action("list", "pods", "", "")));
    }

    #[test]
    fn names_limit_a_rule() {
        assert!(rule(&["pods"], &["a"]).allows(&action("get", "pods", "", "a")));
        assert!(!rule(&["pods"], &["a"]).allows(&action("get", "pods", "", "")));
    }

    #[test]
    fn paths_match_exactly_or_by_prefix() {
        let r = Rule::from_value(&json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/apis/*"]}));
        let at = |p: &str| Attributes {
            verb: "get".into(),
            path: p.into(),
            ..Attributes::default()
        };
        assert!(r.allows(&at("/healthz")) && r.allows(&at("/apis/apps")) && !r.allows(&at("/apis")));
    }

    #[test]
    fn nobody_grants_what_they_do_not_have() {
        let mine = [rule(&["pods", "pods/log"], &[])];
        assert!(rule(&["pods"], &["a"]).covered_by(&mine));
        assert!(!rule(&["secrets"], &[]).covered_by(&mine));
        assert!(!rule(&["pods"], &[]).covered_by(&[rule(&["pods"], &["a"])]));
    }
}
