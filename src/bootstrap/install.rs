//! The way of an apply: connect, look, judge, plan; then, if asked, run the phases.

use crate::{
    Error, Result, airgap,
    cluster::{self, Cluster, pki},
    effects::{self, Learned},
    event::{Event, Observer},
    fan,
    image::Opened,
    login::{self, Login},
    overlay, paths, plan,
    plan::Plan,
    preflight::{self, Finding},
    push,
    reset::unlisted,
    rolling::{Care, Rolling},
    run::Run,
    session::{self, Access, Session},
    site::{Seen, Site},
    supply::Supply,
    swarm::Swarm,
    transfer, ways, wish,
};
use clusterfile::Clusterfile;
use futures::FutureExt as _;
use host::{Facts, Mode, Scope, facts::Query};
use std::{
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

mod prepared;

pub use prepared::{OnFailure, Prepared};

/// How things are done, beyond what the Clusterfile says.
#[derive(Clone)]
pub struct Options {
    /// How hosts are reached.
    pub access: Access,
    /// Folder of the image store.
    pub store: PathBuf,
    /// Preflight checks whose findings stop nothing.
    pub ignored: Vec<String>,
    /// Whether every blob is sent from this machine, and no host fetches from another.
    pub direct: bool,
    /// Who is told.
    pub observer: Arc<dyn Observer>,
    /// Who works on the hosts, for others who want to: `apply of demo by ann@laptop`.
    pub who: String,
    /// How long launching an application, or a launch command, may take.
    pub launch_limit: Duration,
    /// Whether hosts count and refuse what would leave the cluster's addresses.
    pub prove_airgap: bool,
    /// How careful it is with pods of hosts that change.
    pub care: Care,
}

/// How long an existing API server may take to answer, before we say that it does not.
const ANSWER: Duration = Duration::from_secs(20);

/// Looks at all hosts, and says what is wrong and what there is to do. Nothing but `clusterd` itself is put on a host.
///
/// # Errors
/// When the wish cannot be fulfilled, the image is not usable, or a host cannot be talked to.
pub async fn prepare(clusterfile: &Clusterfile, options: &Options) -> Result<Prepared> {
    let start = Instant::now();
    wish::check(clusterfile)?;
    if options.prove_airgap && wish::registry(clusterfile).external {
        return Err(Error::Wish(
            "--prove-airgap is not supported with spec.registry.externalRegistry: images come from outside of the cluster then".into(),
        ));
    }
    let opened = open_image(clusterfile, options).await?;
    crate::image::check(&opened.image)?;
    wish::check_image(clusterfile, &opened.image)?;
    let access = registry_access(clusterfile, &opened).await?;
    let targets = targets(clusterfile);
    let (sessions, lost) = reach(&targets, options, Some(&opened.program)).await;
    let present = without(clusterfile, &lost);
    if !lost.is_empty() && present.masters().next().is_none() {
        // Without a master nothing can be said of the others.
        return Err(give_up(&sessions, lost).await);
    }
    let surveyed = survey(&present, options, opened, access, &sessions).await;
    let (mut findings, mut plan, run) = match surveyed {
        Ok(surveyed) => surveyed,
        Err(_) if !lost.is_empty() => return Err(give_up(&sessions, lost).await),
        Err(error) => {
            leave_bare(&sessions, |session| session.pushed.is_some()).await;
            return Err(error);
        }
    };
    if !lost.is_empty() {
        plan = None;
        findings.extend(lost.iter().map(|(ip, error)| preflight::unreached(*ip, error)));
        preflight::arrange(&mut findings);
    }
    Ok(Prepared {
        findings,
        plan,
        took: start.elapsed(),
        run: Arc::new(run),
        proof: OnceLock::new(),
        who: options.who.clone(),
        targets,
        access: options.access.clone(),
    })
}

/// Looks at the hosts we are connected to, and compares them with the wish.
async fn survey(
    clusterfile: &Clusterfile,
    options: &Options,
    opened: Opened,
    access: RegistryAccess,
    sessions: &[Session],
) -> Result<(Vec<Finding>, Option<Plan>, Run)> {
    let scope = wish::scope(clusterfile);
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let query = query(clusterfile);
    let found = each(sessions, |session| look(session, &scope, &query)).await?;
    let mut site = wish::site(clusterfile, opened.image, found)?;
    cluster::manifest_check::check(&site)?;
    site.fence = options.prove_airgap.then(|| airgap::fence(&site));
    let wanted = site.seats.iter().map(|seat| plan::wanted_blobs(&site, seat)).collect();
    let missing = transfer::missing_everywhere(sessions, wanted).await?;
    transfer::check_outgoing(&site.image.reference, &opened.blobs, &missing).await?;
    let sending = site
        .seats
        .iter()
        .zip(&missing)
        .map(|(seat, missing)| (seat.ip, transfer::outstanding(missing)))
        .collect();
    let looked = preflight::Looked {
        now_ms,
        sending,
        ways: ways::try_all(&site, sessions).await?,
    };
    let findings = preflight::look(&site, &looked, &options.ignored);
    let learned = learned(&site, &access).await?;
    let cluster = tokio::sync::OnceCell::new();
    let record = clusterfile.without_secrets();
    let mut rolling = Rolling::default();
    let plan = if preflight::refuses(&findings) {
        None
    } else {
        let compared = existing(&site, sessions, &record, &cluster).await?;
        site.staying = match &compared {
            Some(compared) => plan::staying(&compared.leaving),
            None => unlisted::named_on(&sessions[site.first_master()], clusterfile).await,
        };
        let hosts = plan::hosts(&site, sessions, &learned, &missing).await?;
        let known = compared.is_some();
        let compared = compared.unwrap_or_default();
        site.recorded = compared.recorded;
        rolling = Rolling::of(&site.seats, &hosts, options.care);
        Some(Plan {
            cluster: site.scope.cluster.clone(),
            image: site.image.reference.clone(),
            digest: site.image.digest.clone(),
            turns: rolling.told(&site.seats),
            hosts,
            objects: known.then_some(compared.objects),
            images: access.push.as_ref().map(push::Push::images).unwrap_or_default(),
            leaving: compared.leaving,
        })
    };
    let run = Run {
        swarm: Swarm::new(&site, &missing, options.direct),
        site,
        rolling,
        sessions: sessions.to_vec(),
        observer: Arc::clone(&options.observer),
        blobs: opened.blobs,
        in_use: opened.in_use,
        record,
        learned: Mutex::new(learned),
        launch_limit: options.launch_limit,
        push: access.push,
        cluster,
    };
    Ok((findings, plan, run))
}

/// What is needed to speak to the registry, and what it lacks if it is somebody else's.
struct RegistryAccess {
    login: Option<Login>,
    ca: Option<String>,
    push: Option<push::Push>,
}

/// Reads the login and the authority, and asks a registry of somebody else what it lacks: all before a host is touched.
async fn registry_access(clusterfile: &Clusterfile, opened: &Opened) -> Result<RegistryAccess> {
    let login = login::resolve(clusterfile)?;
    let file = match &clusterfile.cluster.registry {
        clusterfile::Registry::ExternalRegistry(external) => external.ca_file.as_ref(),
        clusterfile::Registry::LocalRegistry(_) => None,
    };
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|source| Error::Local {
            what: format!("cannot read the authority of the registry, {}", path.display()),
            source,
        })
    };
    let ca = file.map(read).transpose()?;
    let registry = wish::registry(clusterfile);
    let push = push::look(
        &registry,
        &opened.image,
        &opened.store,
        login.as_ref(),
        file.map(PathBuf::as_path),
    )
    .await?;
    Ok(RegistryAccess { login, ca, push })
}

async fn open_image(clusterfile: &Clusterfile, options: &Options) -> Result<Opened> {
    let (store, reference) = (options.store.clone(), clusterfile.cluster.image.clone());
    let trust = clusterfile.cluster.trust.clone();
    // Hosts of other architectures are found by preflight, which names them.
    let platform = image::host_platform();
    let opened = tokio::task::spawn_blocking(move || crate::image::open(&store, &reference, &platform, trust.as_ref()))
        .await
        .map_err(|_| Error::Interrupted("opening the image"))??;
    for message in &opened.warnings {
        options.observer.event(Event::Warning {
            host: None,
            message: message.clone(),
        });
    }
    Ok(opened)
}

/// Every host of the Clusterfile, and how to reach it.
pub fn targets(clusterfile: &Clusterfile) -> Vec<(Ipv4Addr, clusterfile::Ssh)> {
    let hosts = clusterfile.cluster.hosts.iter();
    hosts.map(|host| (host.ip, host.ssh.clone())).collect()
}

/// Connects to hosts; all failures are told together.
///
/// # Errors
/// When any of them cannot be talked to.
pub async fn connect(
    targets: &[(Ipv4Addr, clusterfile::Ssh)],
    options: &Options,
    program: Option<&session::Program>,
) -> Result<Vec<Session>> {
    let (sessions, lost) = reach(targets, options, program).await;
    if lost.is_empty() {
        return Ok(sessions);
    }
    Err(give_up(&sessions, lost).await)
}

/// Hosts that cannot be talked to, and why.
type Lost = Vec<(Ipv4Addr, Error)>;

/// Connects to hosts; those that can be talked to in their order, and those that cannot.
async fn reach(
    targets: &[(Ipv4Addr, clusterfile::Ssh)],
    options: &Options,
    program: Option<&session::Program>,
) -> (Vec<Session>, Lost) {
    let supply = program.map(|program| Supply::new(program, targets.len(), !options.direct));
    let opened = session::open_all(targets, &options.access, supply.as_ref()).await;
    let (mut sessions, mut lost) = (Vec::new(), Lost::new());
    for ((ip, _), opened) in targets.iter().zip(opened) {
        match opened {
            Ok(session) => sessions.push(session),
            Err(error) => lost.push((*ip, error)),
        }
    }
    (sessions, lost)
}

/// The error of hosts that cannot be talked to; the others are left as they were.
async fn give_up(sessions: &[Session], lost: Lost) -> Error {
    leave_bare(sessions, |session| session.pushed.is_some()).await;
    let errors = lost.into_iter().map(|(_, error)| error).collect();
    Error::merge(errors).unwrap_or(Error::Interrupted("connecting"))
}

/// The wish for the hosts that can be talked to.
fn without(clusterfile: &Clusterfile, lost: &Lost) -> Clusterfile {
    let mut present = clusterfile.clone();
    present
        .cluster
        .hosts
        .retain(|host| !lost.iter().any(|(ip, _)| *ip == host.ip));
    present
}

/// Takes `clusterd` off hosts that were only looked at. That it stays where the connection is lost does no harm.
async fn leave_bare(sessions: &[Session], wanted: impl Fn(&Session) -> bool) {
    let removals = sessions
        .iter()
        .filter(|session| wanted(session))
        .map(|session| session.remove_program().boxed());
    for error in fan::all(removals.collect()).await.into_iter().filter_map(Result::err) {
        tracing::warn!(%error, "clusterd stays on a host that was only looked at");
    }
}

/// Does something on every host at once; the results are in order, all failures are told together.
///
/// # Errors
/// When any host fails.
pub async fn each<'s, T, F>(sessions: &'s [Session], mut work: impl FnMut(&'s Session) -> F) -> Result<Vec<T>>
where
    T: Send,
    F: Future<Output = Result<T>> + Send + 's,
{
    fan::all_good(sessions.iter().map(|session| work(session).boxed()).collect()).await
}

fn query(clusterfile: &Clusterfile) -> Query {
    let mut ports = vec![
        6444,
        10250,
        10248,
        10256,
        paths::API_PORT,
        2379,
        2380,
        2381,
        10257,
        10259,
    ];
    let registry = wish::registry(clusterfile);
    ports.extend((!registry.external).then_some(registry.port));
    Query {
        disks: vec![
            clusterfile.cluster.data_root.display().to_string(),
            preflight::AGENT_ROOT.to_owned(),
        ],
        ports,
        // etcd, on masters, lives by it.
        fsync: Some(clusterfile.cluster.data_root.display().to_string()),
        ..Query::default()
    }
}

async fn look(session: &Session, scope: &Scope, query: &Query) -> Result<(Facts, Seen)> {
    session
        .client
        .open(scope, Mode::Read)
        .await
        .map_err(session.failed("opening the host"))?;
    let facts = async {
        session
            .client
            .facts(query)
            .await
            .map_err(session.failed("looking at the host"))
    };
    let (note, default_mirror) = (
        overlay::note_path(scope),
        format!("{}/_default/hosts.toml", paths::CERTS_D),
    );
    let (facts, kubelet, ca, cert, resolver, htpasswd, overlay, mirror, registry) = tokio::try_join!(
        facts,
        pki::read_optional(session, paths::KUBELET_CONF),
        pki::read_optional(session, paths::CA_CERT),
        pki::read_optional(session, paths::KUBELET_CERT),
        pki::read_optional(session, paths::RESOLVER),
        pki::read_optional(session, paths::HTPASSWD),
        pki::read_optional(session, &note),
        pki::read_optional(session, &default_mirror),
        pki::read_optional(session, paths::REGISTRY_UNIT),
    )?;
    let ours = facts
        .installed
        .iter()
        .any(|installed| installed.cluster == scope.cluster);
    let seen = Seen {
        joined: ours && kubelet.is_some(),
        ca: ca.filter(|_| ours),
        kubelet_cert: cert.filter(|_| ours),
        resolver: resolver.is_some(),
        htpasswd: htpasswd.filter(|_| ours),
        overlay: overlay.filter(|_| ours),
        mirrored: mirror.or(registry).is_some(),
    };
    Ok((facts, seen))
}

/// What is known before anything is done.
async fn learned(site: &Site, access: &RegistryAccess) -> Result<Learned> {
    let ca = site.seats[site.first_master()].seen.ca.clone().unwrap_or_default();
    let now = jiff::Timestamp::now().as_second();
    let mut learned = Learned {
        token: cluster::api::new_token(),
        ..Learned::default()
    };
    for seat in &site.seats {
        let sans = effects::serving_subject(seat).sans;
        if let Some(cert) = seat
            .seen
            .kubelet_cert
            .as_ref()
            .filter(|cert| pki::is_good(cert, &ca, &sans, now))
        {
            learned.kubelet_certs.insert(seat.ip, cert.clone());
        }
    }
    learned.ca = ca;
    learned.registry_ca.clone_from(&access.ca);
    learned.login.clone_from(&access.login);
    let (site, login) = (site.clone(), access.login.clone());
    // Password hashes are made to cost time.
    learned.htpasswd = tokio::task::spawn_blocking(move || login::password_files(&site, login.as_ref()))
        .await
        .map_err(|_| Error::Interrupted("hashing the registry's password"))??;
    Ok(learned)
}

/// What changes in the cluster, if there is one already.
async fn existing(
    site: &Site,
    sessions: &[Session],
    record: &serde_json::Value,
    cell: &tokio::sync::OnceCell<Cluster>,
) -> Result<Option<plan::Compared>> {
    let first = site.first_master();
    if !site.seats[first].seen.joined {
        return Ok(None);
    }
    if cluster::api::wait_ready(&sessions[first], ANSWER).await.is_err() {
        // Bringing it up again is what an apply is for.
        return Ok(None);
    }
    let cluster = Cluster::open(&sessions[first]).await?;
    let compared = plan::cluster(site, &cluster, record).await?;
    let _ = cell.set(cluster);
    Ok(Some(compared))
}

/// How a program on a host ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Whether with code 0.
    pub success: bool,
    /// In words.
    pub ended: String,
    /// What it wrote.
    pub stdout: String,
    /// The last of what it complained.
    pub stderr: String,
}

/// Runs a program as root on hosts, all at once; one host's failure is no other's.
pub async fn exec(
    targets: &[(Ipv4Addr, clusterfile::Ssh)],
    options: &Options,
    argv: &[String],
    timeout: Duration,
) -> Vec<(Ipv4Addr, Result<Ran>)> {
    let run = |ip: Ipv4Addr, ssh: clusterfile::Ssh| async move {
        let (connection, elevate) = session::connect(ip, &ssh, &options.access).await?;
        let output = connection
            .exec(&ssh::Command::new(argv).elevate(elevate).timeout(timeout))
            .await?;
        Ok(Ran {
            success: output.status.success(),
            ended: output.status.to_string(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: output.stderr,
        })
    };
    let work = targets.iter().map(|(ip, ssh)| {
        let (ip, work) = (*ip, run(*ip, ssh.clone()));
        async move { (ip, work.await) }.boxed()
    });
    fan::all(work.collect()).await
}
