//! `installer cert`: when certificates end, and having them signed anew before they do.
//!
//! Renewing goes host by host. On each: certificates are signed anew by the cluster's own authorities, kubeconfigs that embed them are written
//! anew, what uses them is restarted, and only when the node works again comes the next host. All of it goes through the host's gate, as
//! a run that is undone when it fails. Authorities themselves are not renewed: they live ten years, and a cluster with another authority is
//! another cluster. Node agents renew their client certificates by themselves.

use crate::{
    Error, Result,
    cluster::{Cluster, api, nodes, wait::until},
    control_plane::{self, ControlPlane},
    effects,
    event::Event,
    install::{self, Options},
    paths, runs,
    session::Session,
    status::on_all,
    wish,
};
use clusterfile::{Clusterfile, Ssh};
use futures::FutureExt as _;
use host::{
    Content, Effect, Mode, Scope,
    effect::{Cert, File, Unit, Usage},
    facts::Query,
    proto::{CertificateInfo, RunEnd, RunMark},
};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde::Serialize;
use std::{net::Ipv4Addr, time::Duration};

/// Validity of what is signed anew, in days.
const DAYS: u32 = 365;
/// How long a node may take until it is Ready again.
const READY: Duration = Duration::from_secs(180);
/// How long an API server that should be there may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// The certificates of one host.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostCertificates {
    /// Its address.
    pub host: String,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// By path.
    pub certificates: Vec<CertificateInfo>,
}

/// How many whole days are left; negative when it has ended.
pub fn days_left(certificate: &CertificateInfo, now: jiff::Timestamp) -> i64 {
    (certificate.not_after - now.as_second()).div_euclid(86_400)
}

/// Asks every host for its certificates; one that does not answer hinders no other.
pub async fn check(clusterfile: &Clusterfile, options: &Options) -> Vec<HostCertificates> {
    let scope = wish::scope(clusterfile);
    let targets = install::targets(clusterfile);
    let asked = on_all(&targets, options, &scope, |session| {
        async move {
            let certificates = session.client.certificates().await;
            certificates.map_err(session.failed("looking at certificates"))
        }
        .boxed()
    });
    let host = |(ip, answer): (Ipv4Addr, Result<Vec<CertificateInfo>>)| {
        let (error, certificates) = match answer {
            Ok(certificates) => (None, certificates),
            // Nothing of ours is there, so nothing ends.
            Err(Error::NoProgram { .. }) => (None, Vec::new()),
            Err(error) => (Some(error.to_string()), Vec::new()),
        };
        HostCertificates {
            host: ip.to_string(),
            error,
            certificates,
        }
    };
    asked.await.into_iter().map(host).collect()
}

/// What was renewed on a host.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Renewed {
    /// Its address.
    pub host: String,
    /// Files that were written anew.
    pub renewed: Vec<String>,
    /// What was restarted.
    pub restarted: Vec<String>,
}

/// Renews the certificates of `only` these hosts, or of all if there are none, one host after the other.
///
/// # Errors
/// The first that fails; what was renewed before stays, what the failing host had changed is undone.
pub async fn renew(clusterfile: &Clusterfile, options: &Options, only: &[Ipv4Addr]) -> Result<Vec<Renewed>> {
    let targets = install::targets(clusterfile);
    if let Some(stranger) = only.iter().find(|ip| !targets.iter().any(|(other, _)| other == *ip)) {
        return Err(Error::Wish(format!("{stranger} is no host of the Clusterfile")));
    }
    let signer = clusterfile.masters().next().map(|host| host.ip);
    let needed = |ip: &Ipv4Addr| only.is_empty() || only.contains(ip) || Some(*ip) == signer;
    let targets: Vec<_> = targets.into_iter().filter(|(ip, _)| needed(ip)).collect();
    let sessions = install::connect(&targets, options, None).await?;
    let scope = wish::scope(clusterfile);
    install::each(&sessions, |session| {
        let (scope, mode) = (
            &scope,
            Mode::Write {
                who: options.who.clone(),
            },
        );
        async move {
            let opened = session.client.open(scope, mode).await;
            opened.map_err(session.failed("taking the host's lock"))
        }
    })
    .await?;
    let signer = sessions
        .iter()
        .find(|session| Some(session.ip) == signer)
        .ok_or_else(|| Error::Wish("the Clusterfile has no master".to_owned()))?;
    let mut all = Vec::new();
    for session in sessions
        .iter()
        .filter(|session| only.is_empty() || only.contains(&session.ip))
    {
        let Some((_, ssh)) = targets.iter().find(|(ip, _)| *ip == session.ip) else {
            continue;
        };
        let renewal = Renewal {
            session,
            signer,
            ssh,
            options,
            scope: &scope,
        };
        all.push(renewal.run().await?);
    }
    Ok(all)
}

/// The renewal of one host.
struct Renewal<'r> {
    session: &'r Session,
    signer: &'r Session,
    ssh: &'r Ssh,
    options: &'r Options,
    scope: &'r Scope,
}

impl Renewal<'_> {
    async fn run(&self) -> Result<Renewed> {
        let session = self.session;
        let applied = session.client.applied().await;
        let applied = applied.map_err(session.failed("asking what was applied"))?;
        if applied.is_empty() {
            return Err(control_plane::unknown(session));
        }
        let mark = RunMark {
            who: self.options.who.clone(),
            at_ms: jiff::Timestamp::now().as_millisecond(),
            ..RunMark::default()
        };
        let begun = session.client.begin_run(mark, true).await;
        begun.map_err(session.failed("noting that a run begins"))?;
        let renewed = match self.renew(&applied).await {
            Ok(renewed) => renewed,
            Err(error) => return Err(self.undo(error).await),
        };
        let ended = session.client.end_run(RunEnd::PartDone).await;
        ended.map_err(session.failed("noting that a run ended"))?;
        Ok(renewed)
    }

    async fn renew(&self, applied: &[Effect]) -> Result<Renewed> {
        let session = self.session;
        self.tell("certificates", "having certificates signed anew");
        let name = session.client.facts(&Query::default()).await;
        let name = name
            .map_err(session.failed("looking at the host"))?
            .hostname
            .to_lowercase();
        let mut wanted = anew(applied);
        if let Some(serving) = self.serving(applied, &name).await? {
            wanted.push(serving);
        }
        let changes = session.client.apply(wanted).await;
        let changes = changes.map_err(session.failed("renewing certificates"))?;
        let renewed: Vec<String> = changes
            .into_iter()
            .filter(host::Change::changed)
            .map(|change| change.what)
            .collect();
        self.tell("restart", "restarting what uses them");
        let mut restarted = Vec::new();
        if let Some(control_plane) = ControlPlane::of(applied) {
            control_plane.stop(session).await?;
            control_plane.start(session).await?;
            restarted.extend(control_plane.titles());
        }
        let units = session.client.apply(units(applied)).await;
        let units = units.map_err(session.failed("restarting what uses them"))?;
        restarted.extend(
            units
                .into_iter()
                .filter(host::Change::changed)
                .map(|change| change.what),
        );
        self.tell("verify", "waiting until the node works again");
        self.settle(&name).await?;
        Ok(Renewed {
            host: session.ip.to_string(),
            renewed,
            restarted,
        })
    }

    /// The node agent's serving certificate, where the authority is on another host.
    async fn serving(&self, applied: &[Effect], name: &str) -> Result<Option<Effect>> {
        let has = |effect: &Effect| matches!(effect, Effect::File(file) if file.path == paths::KUBELET_CERT);
        if !applied.iter().any(has) {
            return Ok(None);
        }
        let (session, signer) = (self.session, self.signer);
        let subject = effects::serving_subject_of(name, session.ip);
        let request = session.client.create_csr(paths::KUBELET_KEY, subject.clone()).await;
        let request = request.map_err(session.failed("asking for a certificate"))?;
        let signed = signer
            .client
            .sign_csr(paths::CA_CERT, paths::CA_KEY, request, subject, Usage::Server, DAYS);
        let cert = signed
            .await
            .map_err(signer.failed(format!("signing the certificate of {name}")))?;
        Ok(Some(Effect::File(File {
            path: paths::KUBELET_CERT.to_owned(),
            content: Content::from(cert),
            mode: 0o644,
            owner: None,
            secret: false,
        })))
    }

    /// Waits until the API server answers and the node is Ready.
    async fn settle(&self, name: &str) -> Result<()> {
        api::wait_ready(self.signer, ANSWER).await?;
        let cluster = Cluster::open(self.signer).await?;
        let api: Api<Node> = Api::all(cluster.client.clone());
        let ready = |node: Option<&Node>| node.is_some_and(nodes::is_ready);
        match tokio::time::timeout(READY, until(api.clone(), name, ready)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Timeout {
                what: format!("{} ({name}): that its node is Ready", self.session.ip),
                seconds: READY.as_secs(),
                last: nodes::seen(&api, name).await,
            }),
        }
    }

    /// What this host's renewal changed is undone: the old certificates may still be good.
    async fn undo(&self, error: Error) -> Error {
        let session = self.session;
        let undone = async {
            let session = runs::alive(session, self.ssh, &self.options.access, self.scope, &self.options.who).await?;
            let undone = session.client.undo_run().await;
            undone.map_err(session.failed("undoing the renewal"))
        };
        let (undone, failed) = match undone.await {
            Ok(undone) => (undone.done.len(), undone.failed),
            Err(error) => (0, vec![error.to_string()]),
        };
        Error::RolledBack {
            source: Box::new(error),
            hosts: vec![runs::RolledBack {
                host: session.ip.to_string(),
                undone,
                failed,
            }],
        }
    }

    fn tell(&self, phase: &'static str, title: &'static str) {
        self.options.observer.event(Event::PhaseStarted {
            phase,
            title,
            host: Some(self.session.ip.to_string()),
        });
    }
}

/// Certificates, so that each is signed anew, and the kubeconfigs that embed them.
fn anew(applied: &[Effect]) -> Vec<Effect> {
    let certificate = |cert: &Cert| {
        Effect::Cert(Cert {
            days: DAYS,
            // Whatever was signed before now.
            renew_days: DAYS,
            ..cert.clone()
        })
    };
    let certificates = applied.iter().filter_map(|effect| match effect {
        Effect::Cert(cert) => Some(certificate(cert)),
        _ => None,
    });
    let kubeconfigs = applied.iter().filter(|effect| matches!(effect, Effect::Kubeconfig(_)));
    certificates.chain(kubeconfigs.cloned()).collect()
}

/// Units of ours: each restarts by itself if something it reads has changed.
fn units(applied: &[Effect]) -> Vec<Effect> {
    let is_unit = |effect: &&Effect| matches!(effect, Effect::Unit(Unit { content: Some(_), .. }));
    applied.iter().filter(is_unit).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{effects::Learned, plan, testing::site};

    fn applied(index: usize) -> Vec<Effect> {
        let site = site();
        let learned = Learned {
            ca: "CA".into(),
            kubelet_certs: [("10.0.0.2".parse().unwrap(), "CERT".to_owned())].into(),
            ..Learned::default()
        };
        let effects = plan::effects(&site, &site.seats[index], &learned).unwrap();
        effects.into_iter().map(|(_, effect)| effect).collect()
    }

    #[test]
    fn every_certificate_is_signed_anew_before_the_kubeconfigs_that_embed_it_and_no_authority_is() {
        let effects = anew(&applied(0));
        let paths: Vec<&str> = effects
            .iter()
            .map(|effect| match effect {
                Effect::Cert(cert) => {
                    assert_eq!((cert.days, cert.renew_days), (365, 365));
                    cert.cert.as_str()
                }
                Effect::Kubeconfig(config) => config.path.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        for path in ["apiserver", "etcd/server", "etcd/peer", "clients/admin"] {
            assert!(
                paths.contains(&format!("/etc/kubernetes/pki/{path}.crt").as_str()),
                "{path}"
            );
        }
        assert!(paths.contains(&paths::REGISTRY_CERT) && paths.contains(&paths::KUBELET_CERT));
        let at = |wanted: &str| paths.iter().position(|path| *path == wanted).unwrap();
        assert!(at("/etc/kubernetes/pki/clients/admin.crt") < at("/etc/kubernetes/admin.conf"));
        assert!(!paths.contains(&paths::CA_CERT));
    }

    #[test]
    fn a_master_has_a_control_plane_to_restart_and_a_node_has_not() {
        assert_eq!(ControlPlane::of(&applied(0)).unwrap().titles().len(), 4);
        assert!(ControlPlane::of(&applied(1)).is_none());
        assert!(!units(&applied(1)).is_empty());
    }

    #[test]
    fn days_are_whole_and_negative_when_it_is_over() {
        let now = jiff::Timestamp::from_second(1_000_000).unwrap();
        for (seconds, days) in [(86_400 * 30, 30), (86_399, 0), (-1, -1), (-86_401, -2)] {
            let cert = CertificateInfo {
                not_after: 1_000_000 + seconds,
                ..CertificateInfo::default()
            };
            assert_eq!(days_left(&cert, now), days, "{seconds}");
        }
    }
}
