//! `oras-csi explain`: shows how references are parsed, and what the policies decide.

mod arguments;
mod objects;
mod reference;
mod report;

pub(crate) use self::arguments::Arguments;
use crate::exit_status::Failure;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let hosts = arguments.registries.hosts()?;
    match &arguments.reference {
        Some(text) => reference::explain_reference(text, &hosts, &arguments).await,
        None => objects::explain_files(&hosts, &arguments).await,
    }
}
