//! What registries want to see of who asks: tokens (Docker's token authentication, which the OCI
//! distribution-spec leaves to RFC 9110 and RFC 6750), or a user name and a password (RFC 7617).

mod challenge;
mod realm;
mod secrets;
mod token;

pub(super) use challenge::{Challenge, Problem, Wanted};
pub(super) use realm::{Realm, basic};
pub(super) use secrets::Secrets;
pub(super) use token::{Asker, Token, Tokens};
