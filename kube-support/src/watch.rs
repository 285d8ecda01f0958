//! Following all objects of a resource through a watch.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::ready;
use std::hash::Hash;

use futures_util::{Stream, StreamExt as _};
use kube::runtime::reflector::Store;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt as _, reflector};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::repeated_failure::RepeatedFailure;

/// Watches the objects of `api` for as long as the stream is polled, and reconnects with a growing delay.
///
/// A failure does not end the stream. It is logged with the message `on_failure`, once until it changes.
pub fn events<K>(api: Api<K>, on_failure: &'static str) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    log_failures(watcher(api, watcher::Config::default()).default_backoff(), on_failure)
}

/// Returns a store that holds the objects of `api` while the stream is polled. The stream yields once for each event.
///
/// Managed fields are dropped, to save memory. Failures are logged as by [`events`].
pub fn reflect<K>(
    api: Api<K>,
    kind: K::DynamicType,
    on_failure: &'static str,
) -> (Store<K>, impl Stream<Item = ()> + Send)
where
    K: Resource<DynamicType: Clone + Eq + Hash + Send + Sync>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    let writer = Writer::new(kind);
    let store = writer.as_reader();
    let changes = watcher(api, watcher::Config::default()).default_backoff();
    let changes = reflector(writer, changes.modify(|object| object.managed_fields_mut().clear()));
    (store, log_failures(changes, on_failure).map(|_| ()))
}

fn log_failures<T: Send>(
    results: impl Stream<Item = Result<T, watcher::Error>> + Send,
    on_failure: &'static str,
) -> impl Stream<Item = T> + Send {
    let mut last = RepeatedFailure::default();
    results.filter_map(move |result| {
        ready(match result {
            Ok(value) => {
                last.clear();
                Some(value)
            }
            Err(error) => {
                let error = error.to_string();
                if last.is_new(&error) {
                    tracing::warn!(error, "{on_failure}");
                }
                None
            }
        })
    })
}

/// The objects of a cluster-scoped resource by name, each parsed into a `T`.
///
/// A list that is still arriving does not show: the objects of the last complete list stay until then.
#[derive(Debug)]
pub struct WatchedObjects<T> {
    objects: BTreeMap<String, T>,
    /// The objects of a list that is not complete yet.
    arriving: Option<BTreeMap<String, T>>,
    is_synced: bool,
}

/// What an event changed, with the values that were there before.
#[derive(Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// Nothing yet: a list is arriving.
    None,
    /// A list is complete.
    Listed {
        /// The objects before; `None` if this is the first list.
        previous: Option<BTreeMap<String, T>>,
    },
    /// One object was created, changed or deleted.
    Object {
        /// Its name.
        name: String,
        /// The value before.
        previous: Option<T>,
    },
}

impl<T> Default for WatchedObjects<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), arriving: None, is_synced: false }
    }
}

impl<T> WatchedObjects<T> {
    /// Returns the objects of the last complete list and of all changes since.
    pub fn objects(&self) -> &BTreeMap<String, T> {
        &self.objects
    }

    /// Reports whether a list was complete since the start.
    pub fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// Applies an event. `parse` gets the object and the present value of that name; an object for which it returns
    /// `None` is left out.
    pub fn apply<K: Resource>(
        &mut self,
        event: Event<K>,
        mut parse: impl FnMut(&K, Option<&T>) -> Option<T>,
    ) -> Change<T> {
        match event {
            Event::Init => {
                self.arriving = Some(BTreeMap::new());
                Change::None
            }
            Event::InitApply(object) => {
                let name = object.name_any();
                let parsed = parse(&object, self.objects.get(&name));
                self.arriving.get_or_insert_default().extend(parsed.map(|parsed| (name, parsed)));
                Change::None
            }
            Event::InitDone => {
                let arrived = self.arriving.take().unwrap_or_default();
                let before = std::mem::replace(&mut self.objects, arrived);
                let was_synced = std::mem::replace(&mut self.is_synced, true);
                Change::Listed { previous: was_synced.then_some(before) }
            }
            Event::Apply(object) => {
                let name = object.name_any();
                let previous = match parse(&object, self.objects.get(&name)) {
                    Some(parsed) => self.objects.insert(name.clone(), parsed),
                    None => self.objects.remove(&name),
                };
                Change::Object { name, previous }
            }
            Event::Delete(object) => {
                let name = object.name_any();
                let previous = self.objects.remove(&name);
                Change::Object { name, previous }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;

    use super::*;

    fn node(name: &str, label: Option<&str>) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        node.metadata.labels = label.map(|label| [("x".to_owned(), label.to_owned())].into());
        node
    }

    fn parse(node: &Node, _: Option<&String>) -> Option<String> {
        node.labels().get("x").cloned()
    }

    #[test]
    fn a_list_replaces_the_objects_only_when_it_is_complete() {
        let mut nodes = WatchedObjects::default();
        nodes.apply(Event::Init, parse);
        assert_eq!(nodes.apply(Event::InitApply(node("a", Some("1"))), parse), Change::None);
        assert!(nodes.objects().is_empty() && !nodes.is_synced());
        assert_eq!(nodes.apply(Event::<Node>::InitDone, parse), Change::Listed { previous: None });
        assert!(nodes.is_synced() && nodes.objects()["a"] == "1");

        nodes.apply(Event::Init, parse);
        nodes.apply(Event::InitApply(node("b", Some("2"))), parse);
        assert_eq!(nodes.objects().keys().collect::<Vec<_>>(), ["a"]);
        let previous = Some([("a".to_owned(), "1".to_owned())].into());
        assert_eq!(nodes.apply(Event::<Node>::InitDone, parse), Change::Listed { previous });
        assert_eq!(nodes.objects().keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_change_gives_the_value_before() {
        let mut nodes = WatchedObjects::default();
        let object = |previous: Option<&str>| Change::Object {
            name: "a".into(),
            previous: previous.map(str::to_owned),
        };
        assert_eq!(nodes.apply(Event::Apply(node("a", Some("1"))), parse), object(None));
        assert_eq!(nodes.apply(Event::Apply(node("a", Some("2"))), parse), object(Some("1")));
        assert_eq!(nodes.apply(Event::Apply(node("a", None)), parse), object(Some("2")));
        assert!(nodes.objects().is_empty());
        nodes.apply(Event::Apply(node("a", Some("3"))), parse);
        assert_eq!(nodes.apply(Event::Delete(node("a", None)), parse), object(Some("3")));
    }
}
