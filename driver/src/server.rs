//! Starts, serves and stops the driver.
//!
//! [`bind`] does everything that can fail at once: it opens the store, mounts the read-only view, takes
//! over earlier volumes and listens. [`Bound::serve`] then answers until it is told to stop.

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
use oras_csi_core::registry::{Keyring, Registry};
use oras_csi_store::gc::{self, Watermarks};
use oras_csi_store::pull::{Fetcher, Pulls};
use oras_csi_store::scrub::{self, Schedule};
use oras_csi_store::{ErrorClass, Store, StoreError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::gc_roots::NodeRoots;
use crate::identity::IdentityService;
use crate::metrics::Metrics;
use crate::mount::{MountError, Mounter};
use crate::node::NodeService;
use crate::preload::{self, ClusterSets, Preload};
use crate::proto::csi::identity_server::IdentityServer;
use crate::proto::csi::node_server::NodeServer;
use crate::proto::registration::registration_server::RegistrationServer;
use crate::publish::{PublishError, Publisher};
use crate::registration::{RegistrationService, Repaired};
use crate::settings::Settings;
use crate::socket::{PrivateSocket, SocketError};

/// How long calls that are being answered may take once the driver is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Why the driver does not run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The read-only view of the store.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The volumes of earlier runs.
    #[error("the volumes of earlier runs cannot be taken over: {0}")]
    TakeOver(#[source] PublishError),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The address for metrics.
    #[error("cannot listen on {address} for metrics: {source}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// A server failed.
    #[error("the {server} server failed: {reason}")]
    Serve {
        /// Which.
        server: &'static str,
        /// Why.
        reason: String,
    },
    /// No name for the node.
    #[error(
        "\"{0}\" is no node id: it needs 1 to 256 bytes; give the driver the name of its node (spec.nodeName)"
    )]
    NodeId(Shown),
    /// Kubelet said no.
    #[error("kubelet refuses to register the driver: {0}")]
    Refused(Shown),
    /// A task that blocks was interrupted.
    #[error("the driver was stopped while it started")]
    Interrupted,
}

impl RunError {
    /// What kind of failure it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(error) => error.class(),
            Self::NodeId(_) | Self::Socket(SocketError::TooLong { .. } | SocketError::Occupied { .. }) => {
                ErrorClass::BadInput
            }
            _ => ErrorClass::Failed,
        }
    }
}

/// A driver that listens and does not answer yet.
pub struct Bound {
    node_id: String,
    socket: PrivateSocket,
    registration: Option<PrivateSocket>,
    metrics_listener: Option<TcpListener>,
    publisher: Arc<Publisher>,
    store: Arc<Store>,
    watermarks: Watermarks,
    scrubbing: Schedule,
    preload: Option<Preload>,
    metrics: Metrics,
    stop: CancellationToken,
}

/// Runs the driver until `shutdown`.
pub async fn run(
    settings: Settings,
    registry: Arc<dyn Registry>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    bind(settings, registry).await?.serve(shutdown).await
}

/// Opens the store, mounts its read-only view, takes over earlier volumes, and listens.
pub async fn bind(settings: Settings, registry: Arc<dyn Registry>) -> Result<Bound, RunError> {
    // CSI: "The maximum length of the node_id is 256 bytes."
    if !(1..=256).contains(&settings.node_id().len()) {
        return Err(RunError::NodeId(settings.node_id().into()));
    }
    let metrics = Metrics::default();
    let stop = CancellationToken::new();
    let (publisher, store, preload) = {
        let (settings, metrics, stop) = (settings.clone(), metrics.clone(), stop.clone());
        let prepare = move || -> Result<(Publisher, Arc<Store>, Option<Preload>), RunError> {
            let store = Store::open(settings.store(), *settings.limits())?
                .with_observer(Arc::new(metrics.clone()))
                .with_garbage_collection(Arc::new(NodeRoots));
            let store = Arc::new(store);
            let mounter = Mounter::prepare(&store)?;
            let fetcher = Arc::new(Fetcher::new(store.clone(), registry));
            let pulls = Arc::new(Pulls::new(fetcher, stop));
            let keyring = Keyring::new(settings.administrator().cloned());
            let (seals, wait) = (settings.seals().clone(), settings.publish_wait());
            let grace = settings.rights_grace();
            let preload = settings.cluster_sets().map(|sets| {
                Preload::new(
                    sets.clone(),
                    settings.node_id(),
                    pulls.clone(),
                    keyring.clone(),
                    metrics.clone(),
                )
            });
            if preload.is_none() {
                // Nobody would ever let go of what sets wanted when there were any.
                store.write_preload_index(&[]).map_err(StoreError::from)?;
            }
            let publisher = Publisher::new(pulls, mounter, seals, keyring, wait, grace, metrics)
                .with_set_secrets(settings.cluster_sets().map(ClusterSets::secrets));
            publisher.take_over().map_err(RunError::TakeOver)?;
            Ok((publisher, store, preload))
        };
        tokio::task::spawn_blocking(prepare).await.map_err(|_| RunError::Interrupted)??
    };
    let metrics_listener = match settings.metrics() {
        None => None,
        Some(address) => {
            let listening = TcpListener::bind(address).await;
            Some(listening.map_err(|source| RunError::Metrics { address, source })?)
        }
    };
    let socket = PrivateSocket::bind(settings.socket())?;
    let registration = settings.registration().map(PrivateSocket::bind).transpose()?;
    Ok(Bound {
        node_id: settings.node_id().to_owned(),
        socket,
        registration,
        metrics_listener,
        publisher: Arc::new(publisher),
        store,
        watermarks: *settings.watermarks(),
        scrubbing: *settings.scrubbing(),
        preload,
        metrics,
        stop,
    })
}

impl Bound {
    /// The CSI socket.
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// The registration socket.
    pub fn registration(&self) -> Option<&Path> {
        self.registration.as_ref().map(PrivateSocket::path)
    }

    /// Where metrics are served; the port that the system chose, if it was asked to.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_listener.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Answers until `shutdown`; then deregisters, lets calls end, stops pulls, and takes the sockets away.
    pub async fn serve(mut self, shutdown: CancellationToken) -> Result<(), RunError> {
        let stop = self.stop.clone();
        // Whatever way this ends, tasks end with it.
        let _stop_all = stop.clone().drop_guard();
        let (refused, mut refusals) = mpsc::channel(1);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(self.answering());
        if let Some(task) = self.registering(refused) {
            tasks.spawn(task);
        }
        if let Some(task) = self.measuring() {
            tasks.spawn(task);
        }
        self.keeping(&mut tasks);
        tracing::info!(socket = %self.socket.path().display(), node = %self.node_id, "the driver serves");
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            Some(words) = refusals.recv() => Err(RunError::Refused(words)),
            Some(ended) = tasks.join_next() => match ended {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) => Err(RunError::Serve { server: "gRPC", reason: "it ended by itself".to_owned() }),
                Err(error) => Err(RunError::Serve { server: "gRPC", reason: error.to_string() }),
            },
        };
        tracing::info!("the driver stops");
        self.registration = None;
        stop.cancel();
        let drained = async {
            while tasks.join_next().await.is_some() {}
            self.publisher.drain().await;
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("calls were still being answered when the driver stopped");
        }
        result
    }

    /// What goes on by itself: collecting, scrubbing, and fetching ahead. All end with `stop`.
    fn keeping(&mut self, tasks: &mut tokio::task::JoinSet<Result<(), RunError>>) {
        let (publisher, stop) = (self.publisher.clone(), self.stop.clone());
        let collecting =
            gc::run(self.store.clone(), self.watermarks, move || publisher.forget_stale_volumes(), stop);
        let (publisher, stop) = (self.publisher.clone(), self.stop.clone());
        let runtime = tokio::runtime::Handle::current();
        // On another thread than the runtime's.
        let preload = self.preload.take();
        let damage = preload.as_ref().map(Preload::damage_notice);
        let heal = move || {
            if let Some(tell) = &damage {
                tell();
            }
            drop(runtime.spawn(publisher.clone().repull_damaged()));
        };
        let scrubbing = scrub::run(self.store.clone(), self.scrubbing, heal, stop);
        if let Some(preload) = preload {
            let fetching = preload::run(preload, self.stop.clone());
            tasks.spawn(async move {
                Box::pin(fetching).await;
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

    fn answering(&mut self) -> impl Future<Output = Result<(), RunError>> + Send + 'static + use<> {
        let node = NodeService::new(self.node_id.clone(), self.publisher.clone(), self.metrics.clone());
        let router = Server::builder()
            .add_service(IdentityServer::new(IdentityService))
            .add_service(NodeServer::new(node));
        serve("CSI", router, self.socket.take_listener(), std::convert::identity, self.stop.clone())
    }

    fn registering(
        &mut self,
        refused: mpsc::Sender<Shown>,
    ) -> Option<impl Future<Output = Result<(), RunError>> + Send + 'static + use<>> {
        let endpoint = self.socket.path().to_owned();
        let socket = self.registration.as_mut()?;
        let service = RegistrationService::new(endpoint, refused);
        let router = Server::builder().add_service(RegistrationServer::new(service));
        Some(serve("registration", router, socket.take_listener(), Repaired::new, self.stop.clone()))
    }

    fn measuring(&mut self) -> Option<impl Future<Output = Result<(), RunError>> + Send + 'static + use<>> {
        let listener = self.metrics_listener.take()?;
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/metrics", get(metrics))
            .with_state(self.metrics.clone());
        let stop = self.stop.clone();
        Some(async move {
            axum::serve(listener, router)
                .with_graceful_shutdown(stop.cancelled_owned())
                .await
                .map_err(|error| RunError::Serve { server: "metrics", reason: error.to_string() })
        })
    }
}

async fn metrics(State(metrics): State<Metrics>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics.encode())
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
    let listener = listener.ok_or_else(|| failed("its listener was taken before".to_owned()))?;
    let incoming = UnixListenerStream::new(listener).map(move |stream| stream.map(wrap));
    router
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
        .map_err(|error| failed(error.to_string()))
}
