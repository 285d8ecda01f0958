//! Cuts the texts of ended spans.

use std::borrow::Cow;
use std::time::Duration;

use opentelemetry::trace::Status;
use opentelemetry::{Context, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

/// The longest text in a span, in bytes.
pub(crate) const MAX_TEXT: usize = 1_024;

/// Passes ended spans on with short texts. Users and registries choose most of the texts, and thousands of ended spans wait in
/// memory while a collector is away: one tenant must not fill it. A collector also rejects requests that are too large.
#[derive(Debug)]
pub(crate) struct Short<P>(pub(crate) P);

impl<P: SpanProcessor> SpanProcessor for Short<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.0.on_start(span, context);
    }

    fn on_end(&self, mut span: SpanData) {
        for attribute in &mut span.attributes {
            if let Value::String(text) = &attribute.value
                && let Some(short) = shortened(text.as_str())
            {
                attribute.value = Value::String(short.into());
            }
        }
        if let Status::Error { description } = &mut span.status
            && let Some(short) = shortened(description)
        {
            *description = Cow::Owned(short);
        }
        self.0.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

fn shortened(text: &str) -> Option<String> {
    (text.len() > MAX_TEXT).then(|| text[..text.floor_char_boundary(MAX_TEXT)].to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::KeyValue;
    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Ended(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Ended {
        fn on_start(&self, _: &mut Span, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    #[test]
    fn long_texts_are_cut_between_two_characters() {
        let ended = Ended::default();
        let provider = SdkTracerProvider::builder().with_span_processor(Short(ended.clone())).build();
        let mut span = provider.tracer("test").start("span");
        span.set_attribute(KeyValue::new("long", format!("x{}", "ü".repeat(300_000))));
        span.set_attribute(KeyValue::new("short", "short"));
        span.set_attribute(KeyValue::new("number", 7));
        span.set_status(Status::error("é".repeat(MAX_TEXT)));
        span.end();
        let spans = ended.0.lock().unwrap();
        let value = |key: &str| {
            let found = spans[0].attributes.iter().find(|attribute| attribute.key.as_str() == key);
            found.unwrap().value.to_string()
        };
        assert_eq!(value("long"), format!("x{}", "ü".repeat(511)));
        assert_eq!((value("short"), value("number")), ("short".to_owned(), "7".to_owned()));
        assert_eq!(spans[0].status, Status::error("é".repeat(MAX_TEXT / 2)));
    }
}
