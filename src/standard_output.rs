//! Writes to standard output that tolerate a reader which closes the pipe early, as `head` does.

use std::io::{ErrorKind, Write as _};

use crate::exit_status::Failure;

/// Writes to standard output. A closed pipe is not a failure.
pub(crate) fn write_stdout(text: &str) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Makes `println!` to a closed pipe end the process with status 0 and no message, as in `oras-csi store ls | head`.
pub(crate) fn exit_quietly_on_broken_pipe() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>();
        if message.is_some_and(|message| message.contains("Broken pipe")) {
            std::process::exit(0);
        }
        default(panic);
    }));
}
