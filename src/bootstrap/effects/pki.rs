//! The cluster's authorities and the certificates of the first master. Keys are made on the host; none ever leaves it.

use super::{Learned, owned_dir};
use crate::{
    Result, paths,
    site::{Seat, Site},
};
use host::{
    Effect,
    effect::{Ca, Cert, Kubeconfig, RENEW_DAYS, Subject, Usage},
};

const TEN_YEARS: u32 = 3650;
const YEAR: u32 = 365;

/// Authorities, certificates and kubeconfigs under the names a kubeadm user knows.
///
/// # Errors
/// Never; the signature is that of all phases.
pub fn pki(site: &Site, seat: &Seat, _: &Learned) -> Result<Vec<Effect>> {
    let mut effects = vec![
        owned_dir("/etc/kubernetes", 0o755),
        owned_dir(paths::PKI, 0o755),
        authority("ca", "kubernetes"),
        authority("front-proxy-ca", "front-proxy-ca"),
        authority("etcd/ca", "etcd-ca"),
        Effect::ServiceAccountKey {
            key: format!("{}/sa.key", paths::PKI),
            public: format!("{}/sa.pub", paths::PKI),
        },
    ];
    effects.extend(certificates(site, seat));
    effects.extend(kubeconfigs(site));
    Ok(effects)
}

fn authority(name: &str, common_name: &str) -> Effect {
    Effect::Ca(Ca {
        cert: format!("{}/{name}.crt", paths::PKI),
        key: format!("{}/{name}.key", paths::PKI),
        common_name: common_name.to_owned(),
        days: TEN_YEARS,
    })
}

/// A row of the table below: file, authority, common name, organizations, further names, use.
type Row<'a> = (&'a str, &'a str, &'a str, &'a [&'a str], Vec<String>, Usage);

fn certificates(site: &Site, seat: &Seat) -> Vec<Effect> {
    let member = || strings(&["localhost", &seat.name, "127.0.0.1", &seat.ip.to_string()]);
    let rows: Vec<Row> = vec![
        (
            "apiserver",
            "ca",
            "kube-apiserver",
            &[],
            api_server_names(site, seat),
            Usage::Server,
        ),
        (
            "apiserver-kubelet-client",
            "ca",
            "kube-apiserver-kubelet-client",
            &["system:masters"],
            vec![],
            Usage::Client,
        ),
        (
            "front-proxy-client",
            "front-proxy-ca",
            "front-proxy-client",
            &[],
            vec![],
            Usage::Client,
        ),
        ("etcd/server", "etcd/ca", &seat.name, &[], member(), Usage::Both),
        ("etcd/peer", "etcd/ca", &seat.name, &[], member(), Usage::Both),
        (
            "etcd/healthcheck-client",
            "etcd/ca",
            "kube-etcd-healthcheck-client",
            &[],
            vec![],
            Usage::Client,
        ),
        (
            "apiserver-etcd-client",
            "etcd/ca",
            "kube-apiserver-etcd-client",
            &[],
            vec![],
            Usage::Client,
        ),
        (
            "clients/admin",
            "ca",
            "kubernetes-admin",
            &["system:masters"],
            vec![],
            Usage::Client,
        ),
        (
            "clients/controller-manager",
            "ca",
            "system:kube-controller-manager",
            &[],
            vec![],
            Usage::Client,
        ),
        (
            "clients/scheduler",
            "ca",
            "system:kube-scheduler",
            &[],
            vec![],
            Usage::Client,
        ),
    ];
    rows.into_iter().map(certificate).collect()
}

fn certificate((file, ca, common_name, organizations, sans, usage): Row) -> Effect {
    let pki = |name: &str, ending: &str| format!("{}/{name}.{ending}", paths::PKI);
    Effect::Cert(Cert {
        cert: pki(file, "crt"),
        key: pki(file, "key"),
        ca_cert: pki(ca, "crt"),
        ca_key: pki(ca, "key"),
        subject: Subject {
            common_name: common_name.to_owned(),
            organizations: strings(organizations),
            sans,
        },
        usage,
        days: YEAR,
        renew_days: RENEW_DAYS,
    })
}

/// All names by which the API server is called: from inside, by its service; from hosts, by the local balancer; from outside, by any master.
pub(crate) fn api_server_names(site: &Site, seat: &Seat) -> Vec<String> {
    let domain = &site.networks.dns_domain;
    let mut names = strings(&[
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        &format!("kubernetes.default.svc.{domain}"),
        "localhost",
        "127.0.0.1",
        &site.kubernetes_ip.to_string(),
        &seat.name,
    ]);
    names.extend(site.masters().map(|master| master.ip.to_string()));
    names.extend(site.kubeadm.cert_sans.iter().cloned());
    names.sort();
    names.dedup();
    names
}

fn kubeconfigs(site: &Site) -> Vec<Effect> {
    let kubeconfig = |file: &str, user: &str| {
        Effect::Kubeconfig(Kubeconfig {
            path: format!("/etc/kubernetes/{file}.conf"),
            server: paths::LOCAL_API.to_owned(),
            ca: paths::CA_CERT.to_owned(),
            cluster: site.scope.cluster.clone(),
            user: user.to_owned(),
            cert: Some(format!("{}/clients/{file}.crt", paths::PKI)),
            key: Some(format!("{}/clients/{file}.key", paths::PKI)),
            token: None,
        })
    };
    vec![
        kubeconfig("admin", "kubernetes-admin"),
        kubeconfig("controller-manager", "system:kube-controller-manager"),
        kubeconfig("scheduler", "system:kube-scheduler"),
    ]
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}
