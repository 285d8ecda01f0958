//! Tests of the webhook's public interface against an in-memory registry.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, missing_docs, unreachable_pub)]

mod corpus;
mod credentials;
mod examples;
mod http;
mod names;
mod network;
mod patched;
mod patches;
mod policies;
mod resolution;
mod sealed;
mod sets;
mod support;
