//! What the runtime has of one pod, reduced to what decisions need. Times are nanoseconds since 1970, as CRI gives them.

use crate::names;
use k8s_cri::v1;

/// Nanoseconds since 1970 (UTC); 0 means never.
pub type Nanos = i64;

/// One second in [`Nanos`].
pub const SECOND: Nanos = 1_000_000_000;

/// The current time.
pub fn now() -> Nanos {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
        .unwrap_or(0)
}

/// All sandboxes and containers of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Sandboxes, oldest first.
    pub sandboxes: Vec<Sandbox>,
    /// Containers, oldest first.
    pub containers: Vec<Container>,
}

/// A pod sandbox.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sandbox {
    /// Runtime's id.
    pub id: String,
    /// Whether it runs.
    pub ready: bool,
    /// How many were before it.
    pub attempt: u32,
    /// When it was created.
    pub created_at: Nanos,
    /// Addresses; empty with host network.
    pub ips: Vec<String>,
    /// Whether it shares the host's network.
    pub host_network: bool,
}

/// State of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// Made, not started.
    #[default]
    Created,
    /// Runs.
    Running,
    /// Ended.
    Exited,
    /// The runtime does not know.
    Unknown,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Container {
    /// Runtime's id.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// Name in the pod.
    pub name: String,
    /// Restarts before it.
    pub restarts: u32,
    /// State.
    pub state: State,
    /// When it was created.
    pub created_at: Nanos,
    /// When it was started.
    pub started_at: Nanos,
    /// When it ended.
    pub finished_at: Nanos,
    /// How it ended.
    pub exit_code: i32,
    /// Runtime's reason: `Completed`, `Error`, `OOMKilled`, …
    pub reason: String,
    /// Termination message, or the runtime's.
    pub message: String,
    /// Image as named in the spec.
    pub image: String,
    /// Image as the runtime names it.
    pub image_ref: String,
    /// Hash of the spec it was made of.
    pub hash: String,
    /// Absolute path of its log.
    pub log_path: String,
}

impl Observed {
    /// The newest sandbox.
    pub fn newest_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().max_by_key(|s| (s.attempt, s.created_at))
    }

    /// The newest sandbox that runs.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes
            .iter()
            .filter(|s| s.ready)
            .max_by_key(|s| (s.attempt, s.created_at))
    }

    /// The newest container of a name.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.of(name).max_by_key(|c| (c.created_at, c.restarts))
    }

    /// The newest instance of the same container that is older than `later` and has ended.
    pub fn before(&self, later: &Container) -> Option<&Container> {
        let age = |c: &Container| (c.created_at, c.restarts);
        self.of(&later.name)
            .filter(|c| c.id != later.id && c.state == State::Exited && age(c) <= age(later))
            .max_by_key(|c| age(c))
    }

    /// Containers that run or may still run.
    pub fn alive(&self) -> impl Iterator<Item = &Container> {
        self.containers
            .iter()
            .filter(|c| matches!(c.state, State::Running | State::Unknown))
    }

    fn of<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Container> {
        let name = name.to_owned();
        self.containers.iter().filter(move |c| c.name == name)
    }
}

impl Sandbox {
    /// From the runtime's answer.
    pub fn from_status(s: &v1::PodSandboxStatus) -> Sandbox {
        let network = s.network.as_ref();
        let ips = network
            .map(|n| {
                std::iter::once(n.ip.clone())
                    .chain(n.additional_ips.iter().map(|i| i.ip.clone()))
                    .filter(|ip| !ip.is_empty())
                    .collect()
            })
            .unwrap_or_default();
        let host_network = s
            .linux
            .as_ref()
            .and_then(|l| l.namespaces.as_ref())
            .and_then(|n| n.options.as_ref())
            .is_some_and(|o| o.network() == v1::NamespaceMode::Node);
        Sandbox {
            id: s.id.clone(),
            ready: s.state() == v1::PodSandboxState::SandboxReady,
            attempt: s.metadata.as_ref().map_or(0, |m| m.attempt),
            created_at: s.created_at,
            ips,
            host_network,
        }
    }
}

/// The state in our words.
pub fn state(s: v1::ContainerState) -> State {
    match s {
        v1::ContainerState::ContainerCreated => State::Created,
        v1::ContainerState::ContainerRunning => State::Running,
        v1::ContainerState::ContainerExited => State::Exited,
        v1::ContainerState::ContainerUnknown => State::Unknown,
    }
}

impl Container {
    /// From the runtime's answer; `sandbox_id` comes from the list, which alone has it.
    pub fn from_status(s: &v1::ContainerStatus, sandbox_id: &str) -> Container {
        let metadata = s.metadata.clone().unwrap_or_default();
        let note = |key: &str| s.annotations.get(key).or_else(|| s.labels.get(key));
        Container {
            id: s.id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            name: note(names::CONTAINER_NAME).cloned().unwrap_or(metadata.name),
            restarts: note(names::RESTART_COUNT)
                .and_then(|n| n.parse().ok())
                .unwrap_or(metadata.attempt),
            state: state(s.state()),
            created_at: s.created_at,
            started_at: s.started_at,
            finished_at: s.finished_at,
            exit_code: s.exit_code,
            reason: s.reason.clone(),
            message: s.message.clone(),
            image: s.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
            image_ref: s.image_ref.clone(),
            hash: note(names::CONTAINER_HASH).cloned().unwrap_or_default(),
            log_path: s.log_path.clone(),
        }
    }
}
