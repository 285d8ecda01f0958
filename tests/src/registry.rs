//! Real registries with what people have in front of them, and the real `oras` that pushes to them.

mod configuration;
mod distribution;
pub mod files;
mod hosts;
mod make;
mod oras;
pub mod proxy;
pub mod pulled;
pub mod raw;
pub(crate) mod served;
pub mod tenants;
pub mod tls;
pub mod token_service;

pub use configuration::Configuration;
pub use distribution::Distribution;
pub use hosts::{write_hosts, write_hosts_toml};
pub use make::{Made, Make};
pub use oras::{Login, Oras, oras, push};
pub use token_service::{Rules, TokenService};
