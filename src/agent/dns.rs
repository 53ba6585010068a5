//! Name resolution inside pods: what goes into /etc/resolv.conf and /etc/hosts. Pure texts and structures.

use crate::config::Config;
use crate::names;
use crate::spec;
use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

/// A parsed resolver file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Addresses.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads a resolver file's text; what it does not know it skips, as the C library does.
    pub fn parse(text: &str) -> Resolver {
        let mut out = Resolver::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
                Some("search") | Some("domain") => {
                    out.searches = words
                        .map(|w| if w == "." { w } else { w.trim_end_matches('.') }.to_owned())
                        .collect()
                }
                Some("options") => out.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        out
    }

    /// The host's; a missing file is an empty one (hosts without any DNS are normal here).
    pub fn of_host(config: &Config) -> Resolver {
        let path = config.resolv_conf.as_ref().filter(|p| !p.as_os_str().is_empty());
        path.and_then(|p| std::fs::read_to_string(p).ok())
            .map(|t| Resolver::parse(&t))
            .unwrap_or_default()
    }
}

fn dedup(list: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(list.len());
    for item in list {
        if !item.is_empty() && !out.contains(&item) {
            out.push(item);
        }
    }
    out
}

/// The pod's resolver configuration.
pub fn for_pod(pod: &Pod, config: &Config, host: &Resolver) -> DnsConfig {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !spec::host_network(pod),
        _ => false,
    } && !config.cluster_dns.is_empty();
    let mut out = Resolver::default();
    if cluster {
        let domain = &config.cluster_domain;
        out.servers = config.cluster_dns.iter().map(ToString::to_string).collect();
        if !domain.is_empty() {
            out.searches = vec![
                format!("{}.svc.{domain}", names::namespace(pod)),
                format!("svc.{domain}"),
                domain.clone(),
            ];
        }
        out.searches.extend(host.searches.iter().cloned());
        out.options = vec!["ndots:5".into()];
    } else if policy != "None" {
        out = host.clone();
    }
    if let Some(own) = spec.and_then(|s| s.dns_config.as_ref()) {
        out.servers.extend(own.nameservers.iter().flatten().cloned());
        out.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            out.options.retain(|o| o.split(':').next() != Some(&name));
            out.options.push(match &option.value {
                Some(v) if !v.is_empty() => format!("{name}:{v}"),
                _ => name,
            });
        }
    }
    DnsConfig {
        servers: dedup(out.servers),
        searches: dedup(out.searches),
        options: dedup(out.options),
    }
}

/// Host name and domain of the pod's processes.
pub fn hostname(pod: &Pod, config: &Config) -> (String, String) {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|s| s.hostname_override.clone()).filter(|n| !n.is_empty()) {
        return (name, String::new());
    }
    let mut host = spec
        .and_then(|s| s.hostname.clone())
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| names::name(pod).to_owned());
    if host.len() > 63 {
        host.truncate(63);
        host = host.trim_end_matches(['-', '.']).to_owned();
    }
    let domain = match spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty()) {
        Some(sub) => format!("{sub}.{}.svc.{}", names::namespace(pod), config.cluster_domain),
        None => String::new(),
    };
    if spec.and_then(|s| s.set_hostname_as_fqdn).unwrap_or(false) && !domain.is_empty() {
        return (format!("{host}.{domain}"), domain);
    }
    (host, domain)
}

/// Text of the pod's /etc/hosts. With the host's network it is the host's own file plus the aliases.
pub fn hosts_file(pod: &Pod, config: &Config, pod_ips: &[String], host_file: &str) -> String {
    let mut out = String::new();
    if spec::host_network(pod) {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(host_file);
        if !out.ends_with('\n') {
            out.push('\n');
        }
    } else {
        out.push_str("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        let (host, domain) = hostname(pod, config);
        for ip in pod_ips {
            if domain.is_empty() || host.ends_with(&domain) {
                out.push_str(&format!("{ip}\t{host}\n"));
            } else {
                out.push_str(&format!("{ip}\t{host}.{domain}\t{host}\n"));
            }
        }
    }
    let aliases: Vec<_> = pod.spec.iter().flat_map(|s| s.host_aliases.iter().flatten()).collect();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for a in aliases {
            out.push_str(&format!(
                "{}\t{}\n",
                a.ip,
                a.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config() -> Config {
        Config {
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            ..Config::default()
        }
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).unwrap()
    }

    #[test]
    fn policies_choose_between_cluster_host_and_own_servers() {
        let host = Resolver::parse("nameserver 1.1.1.1\nsearch example.com.\noptions rotate\n");
        for (spec, servers, searches, options) in [
            (
                json!({"containers": []}),
                "10.96.0.10",
                "n.svc.cluster.local svc.cluster.local cluster.local example.com",
                "ndots:5",
            ),
            (
                json!({"containers": [], "hostNetwork": true}),
                "1.1.1.1",
                "example.com",
                "rotate",
            ),
            (
                json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                "10.96.0.10",
                "n.svc.cluster.local svc.cluster.local cluster.local example.com",
                "ndots:5",
            ),
            (
                json!({"containers": [], "dnsPolicy": "Default"}),
                "1.1.1.1",
                "example.com",
                "rotate",
            ),
            (
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["2.2.2.2"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}]}}),
                "2.2.2.2",
                "a",
                "ndots:2",
            ),
            (
                json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "10.96.0.10",
                "n.svc.cluster.local svc.cluster.local cluster.local example.com",
                "ndots:2 edns0",
            ),
        ] {
            let got = for_pod(&pod(spec.clone()), &config(), &host);
            assert_eq!(
                (got.servers.join(" "), got.searches.join(" "), got.options.join(" ")),
                (servers.into(), searches.into(), options.into()),
                "{spec}"
            );
        }
    }

    #[test]
    fn hosts_file_names_the_pod_and_its_aliases() {
        let p = pod(
            json!({"containers": [], "hostname": "h", "subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
        );
        let text = hosts_file(&p, &config(), &["10.0.0.1".into()], "");
        assert!(text.contains("10.0.0.1\th.s.n.svc.cluster.local\th\n"), "{text}");
        assert!(text.contains("1.2.3.4\ta\tb\n"), "{text}");
        assert!(
            hosts_file(
                &pod(json!({"containers": [], "hostNetwork": true})),
                &config(),
                &[],
                "9.9.9.9 x"
            )
            .contains("9.9.9.9 x\n")
        );
    }
}
