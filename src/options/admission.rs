//! `--namespace` and `--timeout`: the parts of an admission request that the API server would supply.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::time::Instant;

/// Replaces the namespace and the timeout of an admission request where no API server sends one.
#[derive(Debug, Args)]
pub(crate) struct AdmissionOptions {
    /// Namespace of objects that do not name one.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Seconds that all registry requests for one object may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

impl AdmissionOptions {
    /// Returns the namespace that an object names, or `--namespace`.
    pub(crate) fn namespace_of(&self, document: &Value) -> String {
        document["metadata"]["namespace"].as_str().unwrap_or(&self.namespace).to_owned()
    }

    /// Returns the value of `--namespace`.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the time by which an object must be answered whose admission begins now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_from_a_second_to_an_hour() {
        use clap::Parser as _;
        #[derive(Debug, clap::Parser)]
        struct Command {
            #[command(flatten)]
            admission: AdmissionOptions,
        }
        let deadline = |seconds: &str| {
            Command::try_parse_from(["x", "--timeout", seconds]).map(|command| command.admission.deadline())
        };
        assert!(deadline("1").is_ok() && deadline("3600").is_ok());
        for seconds in ["0", "3601", "18446744073709551615", "-1"] {
            assert!(deadline(seconds).is_err(), "{seconds}");
        }
    }
}
