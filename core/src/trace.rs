//! The trace that a pod belongs to: from its admission to the mount of its volumes (docs/operate/traces.md).
//!
//! The webhook writes a [`TraceParent`] into the volumes of a pod, and the driver continues that trace. All crates make
//! their spans with [`TARGET`] at the level `TRACE`. Without an exporter nothing subscribes to that target, so a span
//! costs the test of one flag.

use std::fmt;
use std::str::FromStr;

use tracing::Span;

/// The `target` of all spans that an exporter of traces receives. No log shows them.
///
/// It is not the beginning of the name of a crate: filters compare the beginning.
pub const TARGET: &str = "oras_csi_spans";
/// Writes an error into its span, which must have the fields `otel.status_code` and `otel.status_description`.
pub fn record_error(span: &Span, error: &dyn fmt::Display) {
    if !span.is_disabled() {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", tracing::field::display(error));
    }
}

/// The position in a trace where another program continues: `00-TRACE-SPAN-FLAGS` in lowercase hexadecimal, as in the
/// header `traceparent` (W3C Trace Context, section 3.2). Only version 00 is accepted, and neither id is zero.
///
/// ```
/// use oras_csi_core::trace::TraceParent;
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let parent: TraceParent = text.parse()?;
/// assert_eq!(parent.to_string(), text);
/// assert!(parent.is_sampled());
/// # Ok::<(), oras_csi_core::trace::TraceParentError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace: u128,
    span: u64,
    flags: u8,
}

/// The error for a text that is not a [`TraceParent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of W3C Trace Context, version 00")]
pub struct TraceParentError;

/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

impl TraceParent {
    /// The length of the text, in bytes.
    pub const LENGTH: usize = 55;

    /// Makes a parent. Returns `None` if an id is zero.
    pub fn new(trace: [u8; 16], span: [u8; 8], is_sampled: bool) -> Option<Self> {
        let (trace, span) = (u128::from_be_bytes(trace), u64::from_be_bytes(span));
        (trace != 0 && span != 0).then_some(Self { trace, span, flags: u8::from(is_sampled) })
    }

    /// Returns the id of the trace.
    pub fn trace_id(self) -> [u8; 16] {
        self.trace.to_be_bytes()
    }

    /// Returns the id of the span whose children follow.
    pub fn span_id(self) -> [u8; 8] {
        self.span.to_be_bytes()
    }

    /// Sets whether the trace is recorded.
    #[must_use]
    pub fn with_sampled(self, is_sampled: bool) -> Self {
        Self { flags: u8::from(is_sampled), ..self }
    }

    /// Reports whether the trace is recorded.
    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    fn from_str(text: &str) -> Result<Self, TraceParentError> {
        let is_allowed = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
        if text.len() != Self::LENGTH || !text.bytes().all(is_allowed) {
            return Err(TraceParentError);
        }
        let parts: Vec<&str> = text.split('-').collect();
        let ["00", trace, span, flags] = parts[..] else { return Err(TraceParentError) };
        if (trace.len(), span.len(), flags.len()) != (32, 16, 2) {
            return Err(TraceParentError);
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_| TraceParentError)?;
        let span = u64::from_str_radix(span, 16).map_err(|_| TraceParentError)?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| TraceParentError)?;
        if trace == 0 || span == 0 { Err(TraceParentError) } else { Ok(Self { trace, span, flags }) }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::empty("")]
    #[case::another_version("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    #[case::upper_case("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01")]
    #[case::trace_of_zeros("00-00000000000000000000000000000000-00f067aa0ba902b7-01")]
    #[case::span_of_zeros("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01")]
    #[case::too_long("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x")]
    #[case::other_lengths("00-4bf92f3577b34da6a3ce929d0e0e47360-0f067aa0ba902b7-01")]
    #[case::a_sign("00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    #[case::more_parts("00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b-7-1")]
    #[case::another_alphabet("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-é1")]
    fn rejects_what_is_not_a_traceparent(#[case] text: &str) {
        assert_eq!(text.parse::<TraceParent>(), Err(TraceParentError));
    }

    proptest! {
        #[test]
        fn every_parent_is_read_as_it_is_written(trace: [u8; 16], span: [u8; 8], is_sampled: bool) {
            let Some(parent) = TraceParent::new(trace, span, is_sampled) else { return Ok(()) };
            let text = parent.to_string();
            prop_assert_eq!(text.len(), TraceParent::LENGTH);
            prop_assert_eq!(text.parse(), Ok(parent));
            prop_assert_eq!((parent.trace_id(), parent.span_id()), (trace, span));
            prop_assert_eq!(parent.is_sampled(), is_sampled);
        }

        #[test]
        fn what_is_read_is_written_the_same(text in "00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}") {
            if let Ok(parent) = text.parse::<TraceParent>() {
                prop_assert_eq!(parent.to_string(), text);
            }
        }
    }
}
