//! Which traces are recorded.

use std::fmt;
use std::str::FromStr;

use opentelemetry_sdk::trace::{ParentBasedSampler, Sampler};

/// The share of the traces that are recorded, from 0 to 1. The id of a trace decides, so that every program with the same
/// ratio decides the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRatio(f64);

/// The error for a number that is not a [`SampleRatio`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a number from 0 to 1")]
pub struct SampleRatioError;

impl SampleRatio {
    /// All traces.
    pub const ALL: Self = Self(1.0);
}

impl FromStr for SampleRatio {
    type Err = SampleRatioError;

    fn from_str(text: &str) -> Result<Self, SampleRatioError> {
        let ratio = text.parse().map_err(|_| SampleRatioError)?;
        if (0.0..=1.0).contains(&ratio) { Ok(Self(ratio)) } else { Err(SampleRatioError) }
    }
}

impl fmt::Display for SampleRatio {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

/// What decides about a trace that another program began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decides {
    /// The program that began it. The driver trusts the webhook.
    TheBeginning,
    /// The ratio. A user can write any trace into a pod, which must not raise the share of the traces that are recorded.
    ByRatio,
}

impl Decides {
    pub(crate) fn sampler(self, ratio: SampleRatio) -> ParentBasedSampler {
        let by_ratio = Sampler::TraceIdRatioBased(ratio.0);
        let sampler = ParentBasedSampler::new(by_ratio.clone());
        match self {
            Self::TheBeginning => sampler,
            Self::ByRatio => {
                sampler.with_remote_parent_sampled(by_ratio.clone()).with_remote_parent_not_sampled(by_ratio)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::Context;
    use opentelemetry::trace::{
        SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    };
    use opentelemetry_sdk::trace::{SamplingDecision, ShouldSample as _};

    use super::*;

    #[test]
    fn a_ratio_is_between_0_and_1() {
        for text in ["0", "0.25", "1", "1.0", "1e-3"] {
            assert!(text.parse::<SampleRatio>().is_ok(), "{text}");
        }
        for text in ["", "-0.1", "1.1", "NaN", "inf", "half"] {
            assert_eq!(text.parse::<SampleRatio>(), Err(SampleRatioError), "{text}");
        }
    }

    fn is_recorded(decides: Decides, ratio: f64, flags: TraceFlags, is_remote: bool) -> bool {
        let (trace, span) = (TraceId::from_bytes([0x80; 16]), SpanId::from_bytes([1; 8]));
        let parent = SpanContext::new(trace, span, flags, is_remote, TraceState::default());
        let context = Context::new().with_remote_span_context(parent);
        let sampler = decides.sampler(SampleRatio(ratio));
        let result = sampler.should_sample(Some(&context), trace, "x", &SpanKind::Server, &[], &[]);
        result.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn a_user_cannot_raise_the_share_of_recorded_traces() {
        for flags in [TraceFlags::SAMPLED, TraceFlags::default()] {
            assert!(!is_recorded(Decides::ByRatio, 0.0, flags, true));
            assert!(is_recorded(Decides::ByRatio, 1.0, flags, true));
            assert_eq!(is_recorded(Decides::TheBeginning, 0.0, flags, true), flags.is_sampled());
            assert_eq!(is_recorded(Decides::TheBeginning, 1.0, flags, true), flags.is_sampled());
        }
    }

    #[test]
    fn the_spans_of_one_program_are_recorded_together() {
        for flags in [TraceFlags::SAMPLED, TraceFlags::default()] {
            for ratio in [0.0, 1.0] {
                assert_eq!(is_recorded(Decides::ByRatio, ratio, flags, false), flags.is_sampled());
            }
        }
    }
}
