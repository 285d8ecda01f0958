//! Starts, serves and stops the driver.
//!
//! [`bind`] does everything that can fail at start: it opens the store, mounts the read-only view, takes over the
//! volumes of earlier runs and listens. [`Bound::serve`] then answers calls until the shutdown.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use oras_csi_core::display::Shown;
use oras_csi_core::dns_name::{InvalidName, is_subdomain};
use oras_csi_core::registry::{Keyring, Registry};
use oras_csi_store::gc::{self, Watermarks};
use oras_csi_store::pull::{Fetcher, Pulls};
use oras_csi_store::scrub::{self, Schedule};
use oras_csi_store::{ErrorClass, SelinuxLabel, Store, StoreError, has_labels};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::endpoint;
use crate::gc_roots::NodeRoots;
use crate::identity::IdentityService;
use crate::kubelet_pods::KubeletPods;
use crate::metrics::Metrics;
use crate::mount::{MountError, Mounter};
use crate::node::NodeService;
use crate::pod_events::PodEventWriter;
use crate::preload::{self, ClusterSets, Preload};
use crate::proto::csi::identity_server::IdentityServer;
use crate::proto::csi::node_server::NodeServer;
use crate::proto::registration::registration_server::RegistrationServer;
use crate::publish::{PublishError, Publisher, PublisherOptions, orphaned_volumes};
use crate::registration::{RegistrationService, ValidAuthority};
use crate::settings::Settings;
use crate::socket::{PrivateSocket, SocketError};
use crate::startup_taint::{self, StartupTaint};

/// How long calls and pulls in progress can take after the shutdown begins.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the driver could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The read-only view of the store could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The volumes of earlier runs could not be read.
    #[error("cannot take over the volumes of earlier runs: {0}")]
    TakeOver(#[source] PublishError),
    /// A socket could not be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The address of the metrics, or of the health check, could not be bound.
    #[error("cannot listen at {address}: {source}. Choose another address with {option}")]
    Listen {
        /// The option that has the address.
        option: &'static str,
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// A server failed.
    #[error("the {server} server failed: {reason}")]
    Serve {
        /// The name of the server.
        server: &'static str,
        /// The cause.
        reason: String,
    },
    /// The name of the node is empty or too long.
    #[error(
        "\"{0}\" is not a valid node id: it must have 1 to 256 bytes. Set --node-id to the name of the node (spec.nodeName)"
    )]
    NodeId(Shown),
    /// The name of the node is not the name of an object, so its Node cannot be read.
    #[error(
        "cannot read the Node \"{0}\" for cluster sets: {InvalidName}. Set --node-id to the name of the node (spec.nodeName)"
    )]
    NodeName(Shown),
    /// Kubelet rejected the registration.
    #[error("kubelet rejected the registration of the driver: {0}")]
    RegistrationRejected(Shown),
    /// The runtime stopped during the start.
    #[error("the driver was stopped during its start")]
    Interrupted,
}

impl RunError {
    /// Returns the class of the failure, which decides the exit code.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(error) => error.class(),
            Self::NodeId(_)
            | Self::NodeName(_)
            | Self::Socket(SocketError::TooLong { .. } | SocketError::Occupied { .. }) => {
                ErrorClass::BadInput
            }
            _ => ErrorClass::Failed,
        }
    }
}

/// A driver that listens, but does not answer calls yet.
pub struct Bound {
    node_id: String,
    socket: PrivateSocket,
    registration: Option<PrivateSocket>,
    metrics_listener: Option<TcpListener>,
    health_listener: Option<TcpListener>,
    publisher: Arc<Publisher>,
    store: Arc<Store>,
    watermarks: Watermarks,
    scrubbing: Schedule,
    preload: Option<Preload>,
    kubelet_pods: Option<KubeletPods>,
    startup_taint: Option<StartupTaint>,
    pod_events: Option<PodEventWriter>,
    metrics: Metrics,
    stop: CancellationToken,
}

/// Runs the driver until `shutdown` is cancelled.
pub async fn run(
    settings: Settings,
    registry: Arc<dyn Registry>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    bind(settings, registry).await?.serve(shutdown).await
}

/// Opens the store, mounts its read-only view, takes over the volumes of earlier runs, and listens.
pub async fn bind(settings: Settings, registry: Arc<dyn Registry>) -> Result<Bound, RunError> {
    // CSI: "The maximum length of the node_id is 256 bytes."
    if !(1..=256).contains(&settings.node_id().len()) {
        return Err(RunError::NodeId(settings.node_id().into()));
    }
    let needs_node = settings.cluster_sets().is_some() || settings.startup_taint().is_some();
    if needs_node && !is_subdomain(settings.node_id()) {
        return Err(RunError::NodeName(settings.node_id().into()));
    }
    let metrics = settings.counters().clone();
    let stop = CancellationToken::new();
    let prepared = {
        let (settings, metrics, stop) = (settings.clone(), metrics.clone(), stop.clone());
        let prepare = move || prepare(&settings, registry, metrics, stop);
        tokio::task::spawn_blocking(prepare).await.map_err(|_| RunError::Interrupted)??
    };
    let Prepared { publisher, store, preload, pod_events } = prepared;
    let metrics_listener = listen(settings.metrics(), "--metrics-listen").await?;
    let health_listener = listen(settings.health(), "--health-listen").await?;
    let socket = PrivateSocket::bind(settings.socket())?;
    let registration = settings.registration().map(PrivateSocket::bind).transpose()?;
    Ok(Bound {
        node_id: settings.node_id().to_owned(),
        socket,
        registration,
        metrics_listener,
        health_listener,
        publisher: Arc::new(publisher),
        store,
        watermarks: *settings.watermarks(),
        scrubbing: *settings.scrubbing(),
        preload,
        startup_taint: settings.startup_taint().cloned(),
        pod_events,
        kubelet_pods: settings.own_pod().map(|own| KubeletPods::new(settings.kubelet_dir(), own.clone())),
        metrics,
        stop,
    })
}

async fn listen(address: Option<SocketAddr>, option: &'static str) -> Result<Option<TcpListener>, RunError> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|source| RunError::Listen { option, address, source })
}

/// The parts of a driver that does not listen yet.
struct Prepared {
    publisher: Publisher,
    store: Arc<Store>,
    preload: Option<Preload>,
    pod_events: Option<PodEventWriter>,
}

/// Gives the store its SELinux label: the one that was set, or where the files of the node have labels, the one that
/// containers can read.
fn labelled(store: Store, settings: &Settings) -> Result<Store, StoreError> {
    let label = settings.selinux_label().cloned();
    let is_set = label.is_some();
    let label = label.or_else(|| has_labels(store.path()).then(SelinuxLabel::for_containers));
    Ok(match label {
        Some(label) => store.with_selinux_label(label, is_set)?,
        None => store,
    })
}

/// Opens the store, mounts its read-only view, and takes over the volumes of earlier runs. Blocks the thread.
fn prepare(
    settings: &Settings,
    registry: Arc<dyn Registry>,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<Prepared, RunError> {
    let store = labelled(Store::open(settings.store(), *settings.limits())?, settings)?
        .with_observer(Arc::new(metrics.clone()))
        .with_garbage_collection(Arc::new(NodeRoots));
    let mounter = Mounter::prepare(&store)?;
    // The files of an image have no SELinux labels.
    let has_images = settings.has_images() && !store.has_selinux_label() && mounter.can_mount_images(&store);
    let store = Arc::new(if has_images { store.with_images() } else { store });
    let fetcher = Arc::new(Fetcher::new(store.clone(), registry));
    let pulls = Arc::new(Pulls::new(fetcher, stop));
    let keyring = Keyring::new(settings.administrator().cloned());
    let preload = settings.cluster_sets().map(|sets| {
        Preload::new(sets.clone(), settings.node_id(), pulls.clone(), keyring.clone(), metrics.clone())
    });
    if preload.is_none() {
        // Without preloading, nothing would ever release the content that cluster sets requested in an earlier run.
        store.write_preload_index(&[]).map_err(StoreError::from)?;
    }
    let events = settings.pod_events().cloned().map(|events| events.start(settings.node_id()));
    let (events, pod_events) =
        events.map_or_else(Default::default, |(sender, writer)| (sender, Some(writer)));
    let options = PublisherOptions {
        seals: settings.seals().clone(),
        keyring,
        set_secrets: settings.cluster_sets().map(ClusterSets::secrets),
        wait: settings.publish_wait(),
        authorization_grace: settings.authorization_grace(),
        metrics,
        events,
    };
    let publisher = Publisher::new(pulls, mounter, options);
    publisher.take_over().map_err(RunError::TakeOver)?;
    Ok(Prepared { publisher, store, preload, pod_events })
}

impl Bound {
    /// Returns the path of the CSI socket.
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// Returns the path of the registration socket.
    pub fn registration(&self) -> Option<&Path> {
        self.registration.as_ref().map(PrivateSocket::path)
    }

    /// Returns the address of the metrics. If the settings have port 0, it has the port that the system chose.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_listener.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Returns the address of the health check. If the settings have port 0, it has the port that the system chose.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health_listener.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Answers calls until `shutdown` is cancelled. Then deregisters from kubelet, waits for calls in progress, stops
    /// pulls, and removes the sockets.
    pub async fn serve(mut self, shutdown: CancellationToken) -> Result<(), RunError> {
        let stop = self.stop.clone();
        // All tasks end when this function returns, whatever the reason.
        let _stop_all = stop.clone().drop_guard();
        let (rejected, mut rejections) = mpsc::channel(1);
        let (registered, registrations) = watch::channel(0);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(self.serve_csi());
        if let Some(task) = self.serve_registration(registered, rejected) {
            tasks.spawn(task);
        }
        self.spawn_endpoints(&mut tasks);
        self.spawn_background_tasks(&mut tasks);
        if let Some(taint) = self.startup_taint.take() {
            let removal = startup_taint::run(taint, self.node_id.clone(), registrations, stop.clone());
            tasks.spawn(async move {
                Box::pin(removal).await;
                Ok(())
            });
        }
        tracing::info!(socket = %self.socket.path().display(), node = %self.node_id, "the driver is serving calls");
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            Some(message) = rejections.recv() => Err(RunError::RegistrationRejected(message)),
            Some(ended) = tasks.join_next() => match ended {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) => Err(RunError::Serve { server: "gRPC", reason: "it ended unexpectedly".to_owned() }),
                Err(error) => Err(RunError::Serve { server: "gRPC", reason: error.to_string() }),
            },
        };
        tracing::info!("the driver is shutting down");
        self.registration = None;
        stop.cancel();
        let drained = async {
            while tasks.join_next().await.is_some() {}
            self.publisher.drain().await;
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!("the driver stopped before all calls and pulls ended");
        }
        result
    }

    /// Starts garbage collection, scrubbing, preloading, events of pods and the search for orphaned volumes. All end with
    /// `stop`.
    fn spawn_background_tasks(&mut self, tasks: &mut tokio::task::JoinSet<Result<(), RunError>>) {
        if let Some(events) = self.pod_events.take() {
            let writing = events.run(self.stop.clone());
            tasks.spawn(async move {
                writing.await;
                Ok(())
            });
        }
        if let Some(kubelet) = self.kubelet_pods.take() {
            let orphans = orphaned_volumes::run(self.publisher.clone(), kubelet, self.stop.clone());
            tasks.spawn(async move {
                orphans.await;
                Ok(())
            });
        }
        let (publisher, stop) = (self.publisher.clone(), self.stop.clone());
        let collecting =
            gc::run(self.store.clone(), self.watermarks, move || publisher.forget_stale_volumes(), stop);
        let (publisher, stop) = (self.publisher.clone(), self.stop.clone());
        let runtime = tokio::runtime::Handle::current();
        let preload = self.preload.take();
        let damage = preload.as_ref().map(Preload::damage_notice);
        // The scrubber calls this on a thread that does not belong to the runtime.
        let on_damage = move || {
            if let Some(notify) = &damage {
                notify();
            }
            drop(runtime.spawn(publisher.clone().repull_damaged()));
        };
        let scrubbing = scrub::run(self.store.clone(), self.scrubbing, on_damage, stop);
        if let Some(preload) = preload {
            let preloading = preload::run(preload, self.stop.clone());
            tasks.spawn(async move {
                Box::pin(preloading).await;
                Ok(())
            });
        }
        tasks.spawn(async move {
            collecting.await;
            Ok(())
        });
        tasks.spawn(async move {
            scrubbing.await;
            Ok(())
        });
    }

    fn serve_csi(&mut self) -> impl Future<Output = Result<(), RunError>> + Send + 'static + use<> {
        let node = NodeService::new(self.node_id.clone(), self.publisher.clone(), self.metrics.clone());
        let router = Server::builder()
            .add_service(IdentityServer::new(IdentityService))
            .add_service(NodeServer::new(node));
        serve("CSI", router, self.socket.take_listener(), std::convert::identity, self.stop.clone())
    }

    fn serve_registration(
        &mut self,
        registered: watch::Sender<u64>,
        rejected: mpsc::Sender<Shown>,
    ) -> Option<impl Future<Output = Result<(), RunError>> + Send + 'static + use<>> {
        let endpoint = self.socket.path().to_owned();
        let socket = self.registration.as_mut()?;
        let service = RegistrationService::new(endpoint, registered, rejected);
        let router = Server::builder().add_service(RegistrationServer::new(service));
        Some(serve("registration", router, socket.take_listener(), ValidAuthority::new, self.stop.clone()))
    }

    /// Serves the health check and the metrics. Each port has connections of its own.
    fn spawn_endpoints(&mut self, tasks: &mut tokio::task::JoinSet<Result<(), RunError>>) {
        let health = Router::new().route("/healthz", get(|| async { "ok\n" }));
        let metrics = Router::new().route("/metrics", get(metrics_text)).with_state(self.metrics.clone());
        let endpoints = [
            (self.health_listener.take(), health.clone()),
            (self.metrics_listener.take(), health.merge(metrics)),
        ];
        for (listener, router) in endpoints {
            let Some(listener) = listener else { continue };
            let serving = endpoint::serve(listener, router, self.stop.clone());
            tasks.spawn(async move {
                serving.await;
                Ok(())
            });
        }
    }
}

async fn metrics_text(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, oras_csi_metrics::CONTENT_TYPE)], metrics.encode())
}

async fn serve<S>(
    server: &'static str,
    router: tonic::transport::server::Router,
    listener: Option<UnixListener>,
    wrap: fn(UnixStream) -> S,
    stop: CancellationToken,
) -> Result<(), RunError>
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let failed = |reason: String| RunError::Serve { server, reason };
    let listener = listener.ok_or_else(|| failed("its listener is already in use".to_owned()))?;
    let incoming = UnixListenerStream::new(listener).map(move |stream| stream.map(wrap));
    router
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
        .map_err(|error| failed(error.to_string()))
}
