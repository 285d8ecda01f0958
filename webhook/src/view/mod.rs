//! What the webhook reads of a [`Pod`] or a [`PersistentVolume`].
//!
//! The object stays as it is: fields that this program does not know are neither read nor lost. `null`
//! and an absent field are the same, as they are for the API server's own decoder. A field of another type than
//! Kubernetes gives it is a denial.

mod csi;
mod json;
mod node;
mod persistent_volume;
mod pod;

pub(crate) use csi::Csi;
pub(crate) use json::{Json, Members, Tree};
pub(crate) use persistent_volume::PersistentVolume;
pub(crate) use pod::{Container, ContainerList, Mount, Owner, Pod, Volume};
