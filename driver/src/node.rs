//! The CSI Node service: parses requests, passes them to the publisher, and returns its answers.

use std::sync::Arc;
use std::time::Instant;

use oras_csi_core::trace::{self, TARGET};
use oras_csi_traces::continue_trace;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, Span, field};

use crate::metrics::{CallOutcome, Metrics};
use crate::proto::csi::node_server::Node;
use crate::proto::csi::node_service_capability::{Rpc, Type, rpc};
use crate::proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetStorageHealthRequest,
    NodeGetStorageHealthResponse, NodeGetVolumeHealthRequest, NodeGetVolumeHealthResponse,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest, NodeStageVolumeResponse,
    NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse, VolumeUsage, volume_usage,
};
use crate::publish::{Effect, PublishError, PublishRequest, Publisher};
use crate::status::{outcome, status, unimplemented};

/// The CSI Node service of this node.
pub(crate) struct NodeService {
    node_id: String,
    publisher: Arc<Publisher>,
    metrics: Metrics,
}

impl NodeService {
    pub(crate) fn new(node_id: String, publisher: Arc<Publisher>, metrics: Metrics) -> Self {
        Self { node_id, publisher, metrics }
    }

    async fn publish(&self, request: &NodePublishVolumeRequest) -> Result<Effect, PublishError> {
        let request = PublishRequest::parse(request)?;
        let span = publish_span(&request);
        let published = self.publisher.publish(request).instrument(span.clone()).await;
        if let Err(error) = &published {
            trace::record_error(&span, error);
        }
        published
    }
}

/// Begins the span of a publish call, in the trace of the pod's admission. Kubelet repeats a call that takes long: each one
/// has a span.
fn publish_span(request: &PublishRequest) -> Span {
    let span = tracing::trace_span!(
        target: TARGET,
        "NodePublishVolume",
        otel.kind = "server",
        k8s.namespace.name = request.namespace(),
        k8s.pod.name = request.pod_name(),
        k8s.pod.uid = request.pod_uid(),
        oras_csi.volume = request.volume(),
        oras_csi.id = request.id(),
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
    );
    if let Some(parent) = request.trace() {
        continue_trace(&span, parent);
    }
    span
}

fn success(effect: Effect) -> CallOutcome {
    match effect {
        Effect::Changed => CallOutcome::Done,
        Effect::Unchanged => CallOutcome::Already,
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let began = Instant::now();
        let answer =
            self.publish(request.get_ref()).await.map_err(|error| status("NodePublishVolume", &error));
        let outcome = answer.as_ref().map_or_else(|status| outcome(status.code()), |effect| success(*effect));
        self.metrics.published(outcome, began.elapsed().as_secs_f64());
        answer.map(|_| Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.get_ref();
        let answer = self
            .publisher
            .unpublish(&request.volume_id, &request.target_path)
            .await
            .map_err(|error| status("NodeUnpublishVolume", &error));
        let outcome = answer.as_ref().map_or_else(|status| outcome(status.code()), |effect| success(*effect));
        self.metrics.unpublished(outcome);
        answer.map(|_| Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.get_ref();
        let used = self
            .publisher
            .stats(&request.volume_id, &request.volume_path)
            .await
            .map_err(|error| status("NodeGetVolumeStats", &error))?;
        // A read-only volume has no available space: its content never changes.
        let usage = |amount: u64, unit: volume_usage::Unit| {
            let amount = i64::try_from(amount).unwrap_or(i64::MAX);
            VolumeUsage { available: 0, total: amount, used: amount, unit: unit.into() }
        };
        let usage = vec![
            usage(used.bytes, volume_usage::Unit::Bytes),
            usage(used.inodes, volume_usage::Unit::Inodes),
        ];
        Ok(Response::new(NodeGetVolumeStatsResponse { usage }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let stats = Type::Rpc(Rpc { r#type: rpc::Type::GetVolumeStats.into() });
        let capabilities = vec![NodeServiceCapability { r#type: Some(stats) }];
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse { node_id: self.node_id.clone(), ..Default::default() }))
    }

    async fn node_stage_volume(
        &self,
        _: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        Err(unimplemented("NodeStageVolume"))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        Err(unimplemented("NodeUnstageVolume"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(unimplemented("NodeExpandVolume"))
    }

    async fn node_get_volume_health(
        &self,
        _: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        Err(unimplemented("NodeGetVolumeHealth"))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        Err(unimplemented("NodeGetStorageHealth"))
    }
}
