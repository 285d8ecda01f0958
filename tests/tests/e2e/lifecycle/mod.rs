//! What operators do to an installation, and what fails below it, while pods are created, restarted and deleted and their
//! mounts are read. `docs/operate/lifecycle.md` has the results.

mod certificates;
mod failures;
mod skew;
mod uninstall;
mod upgrade;
