//! One request to the API server, within a time limit.

use std::time::Duration;

/// Why a request to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server refused, or could not be reached.
    #[error("{0}")]
    Api(#[source] Box<kube::Error>),
    /// The time limit passed.
    #[error("the API server did not answer in time")]
    Timeout,
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// Waits for the answer to a request, but not longer than `limit`.
///
/// A client with the defaults of kube retries by itself for minutes when the API server answers 429, 503 or 504, so
/// every caller needs a limit of its own.
pub async fn call<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::Timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_answer_ends_with_a_timeout() {
        let silent = call(Duration::from_secs(5), std::future::pending::<Result<(), kube::Error>>());
        assert!(matches!(silent.await, Err(CallError::Timeout)));
        assert!(matches!(call(Duration::from_secs(5), async { Ok(1) }).await, Ok(1)));
    }
}
