//! The container runtime over CRI v1 (gRPC on a Unix socket). A thin layer: typed calls with time limits, answers
//! that say UNIMPLEMENTED treated as absent. Decisions are made elsewhere.

use crate::error::{Error, Result};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint, Uri};

/// A connection to the runtime; cheap to clone, reconnects by itself.
#[derive(Debug, Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    timeout: Duration,
}

/// Largest message accepted from the runtime, as upstream.
const MAX_MESSAGE: usize = 16 << 20;

macro_rules! call {
    ($self:ident . $service:ident . $method:ident ( $request:expr ), $timeout:expr) => {{
        let mut client = $self.$service.clone();
        let call = client.$method($request);
        match tokio::time::timeout($timeout, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Error::Runtime {
                call: stringify!($method),
                message: status.message().to_owned(),
                code: status.code(),
            }),
            Err(_) => Err(Error::Runtime {
                call: stringify!($method),
                message: format!("no answer within {} s", $timeout.as_secs()),
                code: tonic::Code::DeadlineExceeded,
            }),
        }
    }};
}

impl Cri {
    /// Prepares a connection to `unix:///path` (or a bare path); nothing is sent yet.
    pub fn new(endpoint: &str, timeout: Duration) -> Result<Cri> {
        let path = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
        if !path.is_absolute() {
            return Err(Error::Config {
                origin: "--container-runtime-endpoint".into(),
                message: format!("expected unix:///PATH, found {endpoint:?}"),
            });
        }
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move {
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(
                        tokio::net::UnixStream::connect(path).await?,
                    ))
                }
            }));
        Ok(Cri {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            timeout,
        })
    }

    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<VersionResponse> {
        call!(
            self.runtime.version(VersionRequest { version: "v1".into() }),
            self.timeout
        )
    }

    /// Conditions of the runtime.
    pub async fn status(&self) -> Result<StatusResponse> {
        call!(self.runtime.status(StatusRequest { verbose: false }), self.timeout)
    }

    /// The image sandboxes are made of, where the runtime says it. It is in use although no container names it.
    pub async fn sandbox_image(&self) -> Result<Option<String>> {
        let answer = call!(self.runtime.status(StatusRequest { verbose: true }), self.timeout)?;
        let config = answer
            .info
            .get("config")
            .and_then(|c| serde_json::from_str::<serde_json::Value>(c).ok());
        Ok(config
            .and_then(|c| c.get("sandboxImage")?.as_str().map(str::to_owned))
            .filter(|i| !i.is_empty()))
    }

    /// The cgroup driver the runtime says it uses, if it can say.
    pub async fn cgroup_driver(&self) -> Result<Option<CgroupDriver>> {
        match call!(self.runtime.runtime_config(RuntimeConfigRequest {}), self.timeout) {
            Ok(answer) => Ok(answer.linux.map(|l| l.cgroup_driver())),
            Err(e) => absent(e),
        }
    }

    /// All sandboxes.
    pub async fn list_sandboxes(&self) -> Result<Vec<PodSandbox>> {
        Ok(call!(
            self.runtime.list_pod_sandbox(ListPodSandboxRequest { filter: None }),
            self.timeout
        )?
        .items)
    }

    /// All containers.
    pub async fn list_containers(&self) -> Result<Vec<Container>> {
        Ok(call!(
            self.runtime.list_containers(ListContainersRequest { filter: None }),
            self.timeout
        )?
        .containers)
    }

    /// A sandbox in detail.
    pub async fn sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        };
        call!(self.runtime.pod_sandbox_status(request), self.timeout)?
            .status
            .ok_or_else(|| empty("pod_sandbox_status"))
    }

    /// A container in detail.
    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        call!(self.runtime.container_status(request), self.timeout)?
            .status
            .ok_or_else(|| empty("container_status"))
    }

    /// Creates and starts a sandbox; its id.
    pub async fn run_sandbox(&self, config: PodSandboxConfig, handler: &str) -> Result<String> {
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: handler.into(),
        };
        Ok(call!(self.runtime.run_pod_sandbox(request), self.timeout * 2)?.pod_sandbox_id)
    }

    /// Stops a sandbox and everything in it.
    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        gone_is_done(
            call!(
                self.runtime.stop_pod_sandbox(StopPodSandboxRequest {
                    pod_sandbox_id: id.into()
                }),
                self.timeout
            )
            .map(drop),
        )
    }

    /// Removes a stopped sandbox.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        gone_is_done(
            call!(
                self.runtime.remove_pod_sandbox(RemovePodSandboxRequest {
                    pod_sandbox_id: id.into()
                }),
                self.timeout
            )
            .map(drop),
        )
    }

    /// Creates a container; its id.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(call!(self.runtime.create_container(request), self.timeout)?.container_id)
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        call!(
            self.runtime.start_container(StartContainerRequest {
                container_id: id.into()
            }),
            self.timeout
        )
        .map(drop)
    }

    /// Stops a container: its stop signal, and a kill after `grace` seconds.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let limit = self.timeout + Duration::from_secs(grace.max(0).unsigned_abs());
        let request = StopContainerRequest {
            container_id: id.into(),
            timeout: grace.max(0),
        };
        gone_is_done(call!(self.runtime.stop_container(request), limit).map(drop))
    }

    /// Removes a stopped container.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        gone_is_done(
            call!(
                self.runtime.remove_container(RemoveContainerRequest {
                    container_id: id.into()
                }),
                self.timeout
            )
            .map(drop),
        )
    }

    /// Opens a container's log anew after it was renamed.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        call!(
            self.runtime.reopen_container_log(ReopenContainerLogRequest {
                container_id: id.into()
            }),
            self.timeout
        )
        .map(drop)
    }

    /// Runs a command in a container and waits for it; `timeout` in whole seconds is the runtime's own limit.
    pub async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Duration) -> Result<ExecSyncResponse> {
        let seconds = timeout.as_secs().max(1) as i64;
        let request = ExecSyncRequest {
            container_id: id.into(),
            cmd: command,
            timeout: seconds,
        };
        call!(self.runtime.exec_sync(request), timeout + Duration::from_secs(30))
    }

    /// Prepares an interactive command: URL of the runtime's streaming server.
    pub async fn exec(&self, request: ExecRequest) -> Result<String> {
        Ok(call!(self.runtime.exec(request), self.timeout)?.url)
    }

    /// Prepares attaching to a container: URL of the runtime's streaming server.
    pub async fn attach(&self, request: AttachRequest) -> Result<String> {
        Ok(call!(self.runtime.attach(request), self.timeout)?.url)
    }

    /// Prepares forwarding of ports: URL of the runtime's streaming server. The older web-socket protocols open their
    /// channels for the named ports; SPDY names them stream by stream.
    pub async fn port_forward(&self, sandbox: &str, ports: Vec<i32>) -> Result<String> {
        let request = PortForwardRequest {
            pod_sandbox_id: sandbox.into(),
            port: ports,
        };
        Ok(call!(self.runtime.port_forward(request), self.timeout)?.url)
    }

    /// Usage of all containers.
    pub async fn container_stats(&self) -> Result<Vec<ContainerStats>> {
        Ok(call!(
            self.runtime
                .list_container_stats(ListContainerStatsRequest { filter: None }),
            self.timeout
        )?
        .stats)
    }

    /// All images.
    pub async fn list_images(&self) -> Result<Vec<Image>> {
        Ok(call!(
            self.images.list_images(ListImagesRequest { filter: None }),
            self.timeout
        )?
        .images)
    }

    /// An image if the runtime has it.
    pub async fn image(&self, name: &str) -> Result<Option<Image>> {
        let request = ImageStatusRequest {
            image: Some(image_spec(name)),
            verbose: false,
        };
        match call!(self.images.image_status(request), self.timeout) {
            Ok(answer) => Ok(answer.image),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Pulls an image; the reference of what was pulled.
    pub async fn pull_image(
        &self,
        name: &str,
        auth: Option<AuthConfig>,
        sandbox: Option<PodSandboxConfig>,
    ) -> Result<String> {
        let request = PullImageRequest {
            image: Some(image_spec(name)),
            auth,
            sandbox_config: sandbox,
        };
        // A large image on a slow line may rightly take long; the runtime itself gives up on a stalled transfer.
        Ok(call!(self.images.pull_image(request), Duration::from_secs(24 * 3600))?.image_ref)
    }

    /// Removes an image.
    pub async fn remove_image(&self, id: &str) -> Result<()> {
        gone_is_done(
            call!(
                self.images.remove_image(RemoveImageRequest {
                    image: Some(image_spec(id))
                }),
                self.timeout
            )
            .map(drop),
        )
    }

    /// Where images lie and how much they use.
    pub async fn image_fs(&self) -> Result<Vec<FilesystemUsage>> {
        Ok(call!(self.images.image_fs_info(ImageFsInfoRequest {}), self.timeout)?.image_filesystems)
    }
}

/// An image's name for CRI.
pub fn image_spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.into(),
        user_specified_image: name.into(),
        annotations: HashMap::new(),
        runtime_handler: String::new(),
    }
}

fn empty(call: &'static str) -> Error {
    Error::Runtime {
        call,
        message: "the answer is empty".into(),
        code: tonic::Code::Internal,
    }
}

fn absent<T>(e: Error) -> Result<Option<T>> {
    match e {
        Error::Runtime {
            code: tonic::Code::Unimplemented,
            ..
        } => Ok(None),
        e => Err(e),
    }
}

fn gone_is_done(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.is_not_found() => Ok(()),
        other => other,
    }
}
