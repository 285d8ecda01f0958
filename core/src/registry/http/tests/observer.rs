//! The observer receives every request and every failure, by the registry of the reference.

use std::sync::{Arc, Mutex};

use super::*;
use crate::reference::RegistryHost;
use crate::registry::RequestObserver;

#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<(String, Option<Kind>)>>);

impl RequestObserver for Recorder {
    fn requested(&self, registry: &RegistryHost, took: Duration) {
        assert!(took < Duration::from_secs(2), "{took:?}");
        self.0.lock().unwrap().push((registry.to_string(), None));
    }

    fn failed(&self, registry: &RegistryHost, kind: Kind) {
        self.0.lock().unwrap().push((registry.to_string(), Some(kind)));
    }
}

/// A client of `server` by the name `registry.example`, and what its observer received, as kinds.
fn observed(server: &Server) -> (HttpRegistry, TempDir, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let settings = settings().with_observer(recorder.clone());
    let (client, folder) =
        client_with_settings(&format!("server = \"http://{}\"\n", server.host()), settings);
    (client, folder, recorder)
}

fn kinds(recorder: &Recorder) -> Vec<Option<Kind>> {
    let events = recorder.0.lock().unwrap();
    // The name that the user wrote, not the address of the server.
    assert!(events.iter().all(|(registry, _)| registry == "registry.example"), "{events:?}");
    events.iter().map(|(_, kind)| *kind).collect()
}

#[tokio::test]
async fn each_try_is_one_request_and_each_failed_try_one_failure() {
    let tries = Mutex::new(0);
    let server = Server::start(move |_| {
        let mut tries = tries.lock().unwrap();
        *tries += 1;
        if *tries == 1 {
            return answer(503, &[], b"");
        }
        let bytes = manifest_bytes();
        let digest = Digest::sha256_of(&bytes).to_string();
        answer(200, &[("Content-Type", media::OCI_MANIFEST), ("Docker-Content-Digest", &digest)], &bytes)
    })
    .await;
    let (client, _folder, recorder) = observed(&server);
    let pinned =
        Reference::parse("registry.example/team/app").unwrap().pin(Digest::sha256_of(&manifest_bytes()));
    client.manifest(&pinned).await.unwrap();
    assert_eq!(kinds(&recorder), [None, Some(Kind::Unavailable), None]);
}

#[tokio::test]
async fn content_that_breaks_off_or_differs_is_a_failure_of_its_request() {
    let server = Server::start(|request| {
        if request.line().contains("/blobs/") {
            return vec![head(200, &[("Content-Length", "9")]), Part::Bytes(b"short".to_vec())];
        }
        answer(200, &[("Content-Type", media::OCI_MANIFEST)], b"{}")
    })
    .await;
    let (client, _folder, recorder) = observed(&server);
    let pinned = Reference::parse("registry.example/team/app").unwrap().pin(Digest::sha256_of(b"other"));
    assert_eq!(client.manifest(&pinned).await.unwrap_err().kind(), Kind::Untruthful);
    let blob = Descriptor::new("application/octet-stream", Digest::sha256_of(b"too short"), 9);
    let mut stream = client.blob(&pinned, &blob, 0).await.unwrap();
    while let Some(Ok(_)) = stream.next().await {}
    assert_eq!(kinds(&recorder), [None, Some(Kind::Untruthful), None, Some(Kind::Unreachable)]);
}
