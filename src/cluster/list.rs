//! Lists objects page by page, and tells what a user is not allowed to read from what failed.

use std::fmt::Debug;
use std::time::Duration;

use kube::api::{Api, ListParams};
use oras_csi_kube_support::call::{CallError, call};
use oras_csi_kube_support::errors::{is_unknown_kind, message, message_with_causes};
use serde::de::DeserializeOwned;

use super::format::shown;
use crate::exit_status::Failure;

/// How many objects one page has, as kubectl requests them.
const PAGE: u32 = 500;
/// How long to wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How many times a list starts again because its pages have expired.
const MAX_RESTARTS: u32 = 2;

/// Why something was not read, although the API server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hidden {
    /// RBAC does not allow it.
    Forbidden(String),
    /// The API server does not know the kind: the custom resource definitions are not installed.
    Unknown(String),
}

/// What was read, or why it was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen<T> {
    /// It was read.
    Known(T),
    /// It was not read.
    Hidden(Hidden),
}

impl<T> Seen<T> {
    /// Returns what was read.
    pub(crate) fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Hidden(_) => None,
        }
    }

    /// Returns what was read, or the default. Adds the reason to `hidden` if it was not read.
    pub(crate) fn or_note(self, hidden: &mut Vec<Hidden>) -> T
    where
        T: Default,
    {
        match self {
            Self::Known(value) => value,
            Self::Hidden(reason) => {
                hidden.push(reason);
                T::default()
            }
        }
    }

    pub(crate) fn map<U>(self, convert: impl FnOnce(T) -> U) -> Seen<U> {
        match self {
            Self::Known(value) => Seen::Known(convert(value)),
            Self::Hidden(reason) => Seen::Hidden(reason),
        }
    }
}

impl Hidden {
    /// Returns one line about it.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Forbidden(what) => format!("cannot list {what}: RBAC does not allow it"),
            Self::Unknown(what) => {
                format!(
                    "cannot list {what}: the API server does not know this kind. Is oras-csi installed in this cluster?"
                )
            }
        }
    }
}

/// Lists objects page by page, and keeps what `keep` returns of each. So the memory depends on what is kept.
///
/// `what` is the resource as RBAC names it, with where it was listed.
pub(crate) async fn list<K, T>(
    api: &Api<K>,
    params: ListParams,
    what: &str,
    mut keep: impl FnMut(K) -> Option<T>,
) -> Result<Seen<Vec<T>>, Failure>
where
    K: Clone + DeserializeOwned + Debug,
{
    let (mut kept, mut token, mut restarts) = (Vec::new(), None, 0);
    loop {
        let page = ListParams { limit: Some(PAGE), continue_token: token.take(), ..params.clone() };
        match call(CALL_TIMEOUT, api.list(&page)).await {
            Ok(found) => {
                kept.extend(found.items.into_iter().filter_map(&mut keep));
                token = found.metadata.continue_.filter(|token| !token.is_empty());
                if token.is_none() {
                    return Ok(Seen::Known(kept));
                }
            }
            // The pages are of a state that the API server has forgotten meanwhile.
            Err(CallError::Api(error)) if is_expired(&error) && restarts < MAX_RESTARTS => {
                restarts += 1;
                kept.clear();
            }
            Err(error) => return hidden(&error, what).map(Seen::Hidden),
        }
    }
}

/// Reads one object. `None` means that it does not exist.
pub(crate) async fn get<K>(api: &Api<K>, name: &str, what: &str) -> Result<Seen<Option<K>>, Failure>
where
    K: Clone + DeserializeOwned + Debug,
{
    match call(CALL_TIMEOUT, api.get(name)).await {
        Ok(object) => Ok(Seen::Known(Some(object))),
        Err(CallError::Api(error)) if matches!(&*error, kube::Error::Api(status) if status.code == 404 && !is_unknown_kind(status)) => {
            Ok(Seen::Known(None))
        }
        Err(error) => hidden(&error, what).map(Seen::Hidden),
    }
}

fn is_expired(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}

/// Returns why a user does not see something, or the failure of the API server.
fn hidden(error: &CallError, what: &str) -> Result<Hidden, Failure> {
    let failed = |reason: String| {
        let reason = shown(&reason);
        Failure::failed(format!("cannot read {what} from the Kubernetes API server: {reason}"))
    };
    let CallError::Api(error) = error else { return Err(failed(error.to_string())) };
    match &**error {
        kube::Error::Api(status) if status.code == 403 => Ok(Hidden::Forbidden(what.to_owned())),
        kube::Error::Api(status) if is_unknown_kind(status) => Ok(Hidden::Unknown(what.to_owned())),
        kube::Error::Api(status) if status.code == 401 => {
            Err(failed(format!("{}. The credentials of the kubeconfig are not accepted", message(error))))
        }
        kube::Error::Api(_) => Err(failed(message(error))),
        _ => Err(failed(message_with_causes(error))),
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use k8s_openapi::api::core::v1::ConfigMap;
    use oras_csi_testkit::api_server::ApiServer;
    use serde_json::json;

    use super::*;

    const PATH: &str = "/api/v1/namespaces/team/configmaps";

    fn server(count: usize) -> ApiServer {
        let server = ApiServer::new();
        server.edit(|objects| {
            for number in 0..count {
                let name = format!("m{number:05}");
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
                objects.insert(format!("{PATH}/{name}"), object);
            }
        });
        server
    }

    async fn names(server: &ApiServer) -> Result<Seen<Vec<String>>, Failure> {
        let api: Api<ConfigMap> = Api::namespaced(server.client(), "team");
        list(&api, ListParams::default(), "configmaps", |object| object.metadata.name).await
    }

    #[tokio::test]
    async fn all_pages_are_read() -> Result<(), Box<dyn std::error::Error>> {
        let server = server(1_201);
        let Seen::Known(found) = names(&server).await? else { return Err("hidden".into()) };
        assert_eq!((found.len(), found.last().map(String::as_str)), (1_201, Some("m01200")));
        assert_eq!(server.log().len(), 3, "{:?}", server.log());
        assert!(server.log().iter().all(|line| line.contains("limit=500")));
        Ok(())
    }

    #[tokio::test]
    async fn an_expired_page_starts_the_list_again() -> Result<(), Box<dyn std::error::Error>> {
        let server = server(600);
        // The first page is answered, and the second one has expired.
        server.meanwhile(Method::GET, |_| {});
        server.refuse_at(PATH, Method::GET, 410);
        let found = names(&server).await?;
        assert_eq!(found.known().map(Vec::len), Some(600));
        assert_eq!(server.log().len(), 4, "{:?}", server.log());
        Ok(())
    }

    #[tokio::test]
    async fn what_is_forbidden_is_no_failure_and_the_rest_is() {
        let forbidden = server(1);
        forbidden.forbid(PATH);
        let found = names(&forbidden).await;
        assert_eq!(found, Ok(Seen::Hidden(Hidden::Forbidden("configmaps".to_owned()))));
        let unknown = ApiServer::new();
        unknown.answer_with(Method::GET, 404, "404 page not found");
        let found = names(&unknown).await;
        assert_eq!(found, Ok(Seen::Hidden(Hidden::Unknown("configmaps".to_owned()))));
        let broken = server(1);
        broken.refuse_at(PATH, Method::GET, 500);
        let failure = names(&broken).await.err().map(|failure| failure.to_string()).unwrap_or_default();
        assert!(failure.starts_with("cannot read configmaps from the Kubernetes API server: "), "{failure}");
        broken.go_down();
        let failure = names(&broken).await.err().map(|failure| failure.to_string()).unwrap_or_default();
        assert!(failure.contains("connection refused"), "{failure}");
    }
}
