//! Puts the rooms together, and takes them down on SIGTERM or SIGINT.

use crate::api_client::Api;
use crate::args::Args;
use crate::cgroup::{Cgroups, Layout};
use crate::config::Config;
use crate::cri::Cri;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::images::Images;
use crate::machine_info;
use crate::manager::Manager;
use crate::names::Paths;
use crate::node;
use crate::objects::Objects;
use crate::relist::Relist;
use crate::volumes::Volumes;
use crate::{eviction, gc, logs, server, sources, statics, storage_limits, tls};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Runs the agent until SIGTERM or SIGINT. Pods go on running afterwards.
pub async fn run(args: Args) -> Result<(), Error> {
    let config = match &args.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    if config.fail_swap_on && machine_info::swap_on() {
        return Err(Error::Config {
            origin: "failSwapOn".into(),
            message: "swap is on: turn it off, or set failSwapOn: false".into(),
        });
    }
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut tasks = JoinSet::new();
    tokio::select! {
        result = start(args, config, &mut tasks) => result?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(ended) = tasks.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(e),
                Err(e) => return Err(Error::Other(format!("a part of the agent ended: {e}"))),
            },
        }
    }
    tracing::info!("stopping; pods go on running");
    tasks.shutdown().await;
    Ok(())
}

fn signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(kind).map_err(|e| Error::Other(format!("signal handler: {e}")))
}

type Tasks = JoinSet<Result<()>>;

fn spawn(tasks: &mut Tasks, future: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        future.await;
        Ok(())
    });
}

fn host_ips(args: &Args) -> Vec<String> {
    let own = || machine_info::own_address().into_iter().collect();
    let list: Vec<std::net::IpAddr> = if args.node_ip.is_empty() {
        own()
    } else {
        args.node_ip.clone()
    };
    list.iter().map(ToString::to_string).collect()
}

/// The providing sides of what the context only reads.
struct Feeds {
    client: crate::api_client::Provider,
    network: watch::Sender<bool>,
    services: watch::Sender<Option<Arc<Vec<crate::env::ServiceInfo>>>>,
}

/// Makes the context and starts what serves it.
fn assemble(args: &Args, config: Config, cri: Cri, tasks: &mut Tasks) -> Result<(Arc<Ctx>, Feeds)> {
    let node_name = machine_info::node_name(args.hostname_override.as_deref());
    let paths = Paths::new(&args.root_dir, &args.log_dir);
    std::fs::create_dir_all(&paths.root).map_err(Error::io("create", &paths.root))?;
    let (client, api) = Api::new();
    let (network, network_ready) = watch::channel(false);
    let (services_sender, services) = watch::channel(None);
    let (relist, relister) = Relist::new(cri.clone());
    let (events, eventer) = Events::new(api.clone(), &node_name);
    spawn(tasks, relister);
    spawn(tasks, eventer);
    let size = machine_info::Size::read();
    let capacity = machine_info::capacity(size, &paths.root, config.max_pods);
    let objects = Objects::new(api.clone());
    let pulls = match config.serialize_image_pulls {
        true => 1,
        false => config.max_parallel_image_pulls.unwrap_or(5) as usize,
    };
    let ctx = Ctx {
        paths: paths.clone(),
        node_name,
        host_ips: host_ips(args),
        memory: size.memory,
        cpus: size.cpus,
        relist,
        images: Images::new(cri.clone(), pulls),
        cgroups: Cgroups::new(config.cgroup_driver, config.cgroup_root.as_deref(), Layout::detect()?),
        api,
        volumes: Volumes {
            paths,
            objects: objects.clone(),
        },
        objects,
        events,
        network_ready,
        services,
        allocatable: machine_info::allocatable(&capacity, &config),
        burstable: Mutex::default(),
        cri,
        config,
    };
    Ok((
        Arc::new(ctx),
        Feeds {
            client,
            network,
            services: services_sender,
        },
    ))
}

fn wish(args: &Args, config: &Config) -> Result<node::Wish> {
    let bad = |origin: &str| {
        let origin = origin.to_owned();
        move |message| Error::Config { origin, message }
    };
    Ok(node::Wish {
        labels: node::parse_labels(&args.node_labels).map_err(bad("--node-labels"))?,
        taints: taints(args, config)?,
        port: config.port,
        hostname: machine_info::node_name(args.hostname_override.as_deref()),
    })
}

async fn start(args: Args, config: Config, tasks: &mut Tasks) -> Result<()> {
    let own = config.container_runtime_endpoint.clone().filter(|e| !e.is_empty());
    let endpoint = own.unwrap_or_else(|| args.container_runtime_endpoint.clone());
    let cri = Cri::new(&endpoint, config.runtime_request_timeout)?;
    let wish = wish(&args, &config)?;
    let (ctx, feeds) = assemble(&args, config, cri.clone(), tasks)?;
    let (runtime_sender, runtime) = watch::channel(node::RuntimeState::default());
    spawn(tasks, node::watch_runtime(cri, runtime_sender, feeds.network));
    let (pressure_sender, pressure) = watch::channel(eviction::Pressure::default());
    let (registered_sender, registered) = watch::channel(false);
    let (api_sender, api_receiver) = mpsc::channel(256);
    let has_api = args.kubeconfig.is_some() || args.bootstrap_kubeconfig.is_some();
    if has_api {
        // Before the runtime is there: getting a certificate and the Node take their time as well.
        let files = tls::client::Files::of(&args);
        spawn(
            tasks,
            tls::client::run(
                ctx.config.rotate_certificates,
                ctx.node_name.clone(),
                files,
                feeds.client,
            ),
        );
        spawn(tasks, sources::pods(ctx.api.clone(), ctx.node_name.clone(), api_sender));
        spawn(tasks, sources::services(ctx.api.clone(), feeds.services));
        spawn(
            tasks,
            node::run(ctx.clone(), wish, runtime.clone(), pressure, registered_sender),
        );
        spawn(tasks, node::lease(ctx.clone(), registered.clone()));
    }
    wait_for_runtime(&ctx, &endpoint).await;
    check_driver(&ctx).await?;
    ctx.cgroups.ensure_classes(ctx.cpus).await?;
    let static_path = ctx.config.static_pod_path.clone();
    let (manager, pods) = Manager::new(ctx.clone(), has_api, static_path.is_some());
    let (static_sender, static_receiver) = mpsc::channel(4);
    let (request_sender, request_receiver) = mpsc::channel(16);
    tasks.spawn(manager.run(static_receiver, api_receiver, request_receiver));
    if let Some(dir) = static_path {
        let period = ctx.config.file_check_frequency.min(Duration::from_secs(1));
        spawn(tasks, statics::watch(dir, ctx.node_name.clone(), period, static_sender));
    }
    spawn(
        tasks,
        storage_limits::run(ctx.clone(), pods.clone(), request_sender.clone()),
    );
    spawn(
        tasks,
        eviction::run(ctx.clone(), pods.clone(), pressure_sender, request_sender),
    );
    spawn(tasks, gc::run(ctx.clone(), pods.clone()));
    spawn(tasks, logs::rotate(ctx.clone()));
    server::start(&ctx, &args, pods, registered, runtime, tasks).await
}

fn taints(args: &Args, config: &Config) -> Result<Vec<k8s_openapi::api::core::v1::Taint>> {
    let mut out = config.register_with_taints.clone();
    let own = node::parse_taints(&args.register_with_taints);
    out.extend(own.map_err(|message| Error::Config {
        origin: "--register-with-taints".into(),
        message,
    })?);
    Ok(out)
}

/// The runtime may be starting at the same time.
async fn wait_for_runtime(ctx: &Ctx, endpoint: &str) {
    let mut backoff = crate::backoff::Doubling::new(Duration::from_millis(50), Duration::from_secs(1));
    let mut said = false;
    while let Err(e) = ctx.cri.version().await {
        if !std::mem::replace(&mut said, true) {
            tracing::info!("waiting for the container runtime at {endpoint}: {e}");
        }
        tokio::time::sleep(backoff.next()).await;
    }
    ctx.relist.refresh().await;
}

/// A runtime that uses another cgroup driver would put containers beside the limits of their pods.
async fn check_driver(ctx: &Ctx) -> Result<()> {
    use crate::config::CgroupDriver as Ours;
    use k8s_cri::v1::CgroupDriver as Theirs;
    let Some(theirs) = ctx.cri.cgroup_driver().await? else {
        return Ok(());
    };
    match (ctx.config.cgroup_driver, theirs) {
        (Ours::Systemd, Theirs::Systemd) | (Ours::Cgroupfs, Theirs::Cgroupfs) => Ok(()),
        (ours, theirs) => Err(Error::Config {
            origin: "cgroupDriver".into(),
            message: format!("it is {ours:?} here and {theirs:?} in the container runtime: they must be the same"),
        }),
    }
}
