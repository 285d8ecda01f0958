//! What registries want to see of who asks: tokens (Docker's token authentication, which the OCI
//! distribution-spec leaves to RFC 9110 and RFC 6750), or a user name and a password (RFC 7617).

mod challenge;
mod realm;
mod token;

pub(super) use challenge::{Challenge, Wanted};
pub(super) use realm::{Realm, basic};
pub(super) use token::{Asker, Token, Tokens};
