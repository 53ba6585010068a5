//! The grammar of request paths. It is regular, and custom resources make its words dynamic, so one parser serves
//! instead of a router.

use http::{Method, Uri};
use percent_encoding::percent_decode_str;

/// Decoded query parameters in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=b&c`.
    pub fn parse(raw: &str) -> Self {
        let decode = |s: &str| {
            let s = s.replace('+', " ");
            percent_decode_str(&s).decode_utf8_lossy().into_owned()
        };
        Self(
            raw.split('&')
                .filter(|p| !p.is_empty())
                .map(|p| {
                    p.split_once('=')
                        .map_or_else(|| (decode(p), String::new()), |(k, v)| (decode(k), decode(v)))
                })
                .collect(),
        )
    }

    /// First value of a parameter; an empty one counts as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
            .filter(|v| !v.is_empty())
    }

    /// Whether a parameter is given at all.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k == key)
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A boolean parameter as Go parses them; present without a value is true.
    pub fn flag(&self, key: &str) -> bool {
        self.0
            .iter()
            .any(|(k, v)| k == key && !matches!(v.as_str(), "0" | "f" | "F" | "false" | "False" | "FALSE"))
    }

    /// All parameters.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names an API resource.
    pub resource_request: bool,
    /// API verb for resources, lower-case HTTP method for other paths.
    pub verb: String,
    /// The path.
    pub path: String,
    /// API group, empty for the legacy one.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; for the resource `namespaces` its own name.
    pub namespace: String,
    /// Plural resource name.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Object name; empty for collections.
    pub name: String,
    /// What follows the subresource (proxies), without a leading slash.
    pub rest: String,
    /// Query.
    pub query: Query,
    /// Whether the path names a collection.
    pub collection: bool,
}

fn segment(s: &str) -> String {
    percent_decode_str(s).decode_utf8_lossy().into_owned()
}

impl RequestInfo {
    /// Parses method and URI.
    pub fn parse(method: &Method, uri: &Uri) -> Self {
        let query = Query::parse(uri.query().unwrap_or_default());
        let mut info = Self {
            path: uri.path().to_owned(),
            query,
            verb: method.as_str().to_lowercase(),
            ..Self::default()
        };
        let mut parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        let group_parts = match parts.first() {
            Some(&"api") if parts.len() >= 3 => 2,
            Some(&"apis") if parts.len() >= 4 => 3,
            _ => return info,
        };
        info.resource_request = true;
        if group_parts == 3 {
            info.group = segment(parts[1]);
        }
        info.version = segment(parts[group_parts - 1]);
        parts.drain(..group_parts);
        let legacy_watch = parts[0] == "watch" && parts.len() > 1;
        if legacy_watch {
            parts.remove(0);
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace = segment(parts[1]);
            if parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
                parts.drain(..2);
            }
        }
        let mut words = parts.iter();
        info.resource = words.next().map(|s| segment(s)).unwrap_or_default();
        info.name = words.next().map(|s| segment(s)).unwrap_or_default();
        info.subresource = words.next().map(|s| segment(s)).unwrap_or_default();
        info.rest = words.copied().collect::<Vec<_>>().join("/");
        if !info.rest.is_empty() && uri.path().ends_with('/') {
            info.rest.push('/');
        }
        info.set_verb(method, legacy_watch);
        info
    }

    fn set_verb(&mut self, method: &Method, legacy_watch: bool) {
        self.collection = self.name.is_empty();
        let verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD if legacy_watch => "watch",
            Method::GET | Method::HEAD if self.collection && self.query.flag("watch") => "watch",
            Method::GET | Method::HEAD if self.collection => "list",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if self.collection => "deletecollection",
            Method::DELETE => "delete",
            // No verb of the API: only a rule for every verb allows it.
            _ => "",
        };
        self.verb = verb.to_owned();
        if self.collection
            && matches!(verb, "list" | "watch" | "deletecollection")
            && let Some(name) = self.query.get("fieldSelector").and_then(name_of_selector)
        {
            self.name = name;
        }
    }
}

/// The name in a field selector that requires one.
fn name_of_selector(selector: &str) -> Option<String> {
    selector.split(',').find_map(|t| {
        let value = t.trim().strip_prefix("metadata.name=")?;
        Some(value.strip_prefix('=').unwrap_or(value).to_owned()).filter(|v| !v.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, uri: &str, expected: (&str, &str, &str, &str, &str, &str, &str)) {
        let i = RequestInfo::parse(&method, &uri.parse().unwrap());
        let got = (
            i.verb.as_str(),
            i.group.as_str(),
            i.namespace.as_str(),
            i.resource.as_str(),
            i.name.as_str(),
            i.subresource.as_str(),
            i.rest.as_str(),
        );
        assert_eq!(got, expected, "{uri}");
    }

    #[test]
    fn paths_of_resources_are_taken_apart() {
        let get = Method::GET;
        check(get.clone(), "/api/v1/pods", ("list", "", "", "pods", "", "", ""));
        check(
            get.clone(),
            "/api/v1/namespaces/a/pods?watch=true",
            ("watch", "", "a", "pods", "", "", ""),
        );
        check(
            get.clone(),
            "/api/v1/watch/namespaces/a/pods",
            ("watch", "", "a", "pods", "", "", ""),
        );
        check(
            get.clone(),
            "/api/v1/namespaces/a",
            ("get", "", "a", "namespaces", "a", "", ""),
        );
        check(
            get.clone(),
            "/api/v1/namespaces",
            ("list", "", "", "namespaces", "", "", ""),
        );
        check(
            Method::PUT,
            "/api/v1/namespaces/a/finalize",
            ("update", "", "a", "namespaces", "a", "finalize", ""),
        );
        check(
            get.clone(),
            "/api/v1/namespaces/a/status",
            ("get", "", "a", "namespaces", "a", "status", ""),
        );
        check(
            get.clone(),
            "/api/v1/namespaces/a/pods/b/log",
            ("get", "", "a", "pods", "b", "log", ""),
        );
        check(
            get.clone(),
            "/api/v1/namespaces/a/services/b:80/proxy/x/y/?q=1",
            ("get", "", "a", "services", "b:80", "proxy", "x/y/"),
        );
        check(
            Method::DELETE,
            "/apis/apps/v1/namespaces/a/deployments",
            ("deletecollection", "apps", "a", "deployments", "", "", ""),
        );
        check(
            get,
            "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Db&watch=1",
            ("watch", "", "a", "secrets", "b", "", ""),
        );
    }

    #[test]
    fn other_paths_keep_their_method_as_verb() {
        for p in [
            "/healthz",
            "/api",
            "/apis/apps/v1",
            "/api/v1",
            "/openapi/v3/apis/apps/v1",
        ] {
            let i = RequestInfo::parse(&Method::GET, &p.parse().unwrap());
            assert!(!i.resource_request, "{p}");
            assert_eq!(i.verb, "get");
        }
    }
}
