//! The outcomes of writing a pin.

use crate::pins::PinError;

/// What an attempt to store a pin led to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PinWrite<'a> {
    /// The pin has the digest that was written.
    Stored,
    /// Another pod of the revision was first, with another digest, which counts.
    Superseded,
    /// There is no pin.
    Failed(&'a PinError),
}

impl PinWrite<'_> {
    /// All values of the label.
    pub(super) const OUTCOMES: [&'static str; 12] = [
        "stored",
        "superseded",
        "forbidden",
        "no_kind",
        "terminating",
        "quota",
        "refused",
        "invalid",
        "unavailable",
        "timeout",
        "vanishing",
        "mismatch",
    ];

    /// Returns the value of the label.
    pub(super) fn outcome(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Superseded => "superseded",
            Self::Failed(error) => match error {
                PinError::Forbidden { .. } => "forbidden",
                PinError::NoKind => "no_kind",
                PinError::Terminating(_) => "terminating",
                PinError::Quota { .. } => "quota",
                PinError::Refused { .. } => "refused",
                PinError::Invalid { .. } => "invalid",
                PinError::Unavailable { .. } => "unavailable",
                PinError::TooLate => "timeout",
                PinError::Vanishing { .. } => "vanishing",
                PinError::Mismatch { .. } => "mismatch",
            },
        }
    }
}
