//! The metrics that the webhook and the driver share: requests to registries, and the build.
//!
//! Names follow the conventions of Prometheus: base units, the unit in the name, `_total` for counters. Every label has a
//! bounded number of values. A label whose values come from users has at most [`MAX_VALUES`] of them, and the value
//! [`OTHER`] for the rest ([`Bounded`]). Paths, names of pods and secrets are never labels.

#![cfg_attr(test, allow(clippy::expect_used, clippy::panic, clippy::unwrap_used))]

mod bounded;
mod registry_requests;

use std::borrow::Cow;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use self::bounded::{Bounded, MAX_VALUES, OTHER};
pub use self::registry_requests::RegistryRequests;

/// Makes a set of metrics whose names begin with `prefix`, with the version of the build. Only the series of the build has
/// the version, so that an update does not start new series.
pub fn with_build_info(prefix: &str) -> Registry {
    let mut registry = Registry::with_prefix(prefix);
    let version = [("version", Cow::Borrowed(env!("CARGO_PKG_VERSION")))];
    registry.register("build", "The version of this program; the value is always 1", Info::new(version));
    registry
}

/// Returns all metrics in the OpenMetrics text format.
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, registry);
    text
}

/// The media type of [`encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_a_label_of_one_series() {
        let text = encode(&with_build_info("oras_csi_test"));
        let line = format!("oras_csi_test_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"));
        assert!(text.contains(&line), "{text}");
    }
}
