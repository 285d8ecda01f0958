//! Authentication to registries: bearer tokens (Docker's token authentication, which the OCI distribution-spec leaves
//! to RFC 9110 and RFC 6750), or user name and password (RFC 7617).

mod challenge;
mod realm;
mod secrets;
mod token;

pub(super) use challenge::{Challenge, ChallengeProblem, Challenges};
pub(super) use realm::{Realm, basic};
pub(super) use secrets::Secrets;
pub(super) use token::{Requester, Token, Tokens};
