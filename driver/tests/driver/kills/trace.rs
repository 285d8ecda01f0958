//! Runs a program until its n-th system call that changes a file, and kills it there.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What the program prints when it waits for the start signal.
pub const READY: &str = "ready to be killed";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The program was killed before the call.
    Killed,
    /// The program exited, after this many calls.
    ByItself(u64),
}

/// Runs `command`, which prints [`READY`] and waits for a line. Kills it before its `at`-th call that changes a file. A
/// write counts if its file is below `folder`.
#[expect(clippy::zombie_processes, reason = "the tracer waits for every thread of it")]
pub fn run(command: &mut Command, folder: &Path, at: u64) -> Ended {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let main = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(READY)), "the program does not start");

    // Attaches to every existing thread. New threads are followed automatically.
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_EXITKILL;
    for task in fs::read_dir(format!("/proc/{main}/task")).unwrap() {
        let task = Pid::from_raw(task.unwrap().file_name().to_str().unwrap().parse().unwrap());
        ptrace::seize(task, options).unwrap();
        ptrace::interrupt(task).unwrap();
        assert!(matches!(waitpid(task, Some(WaitPidFlag::__WALL)), Ok(WaitStatus::PtraceEvent(..))));
        ptrace::syscall(task, None).unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();

    let (mut count, mut killed, mut status) = (0, false, None);
    loop {
        // Waits only for tracees of this thread: another thread may trace another program.
        let task = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Ok(WaitStatus::PtraceSyscall(task)) => {
                if changes(task, folder) {
                    count += 1;
                    if count == at {
                        kill(main, Signal::SIGKILL).unwrap();
                        killed = true;
                    }
                }
                task
            }
            Ok(WaitStatus::PtraceEvent(task, ..)) => task,
            Ok(WaitStatus::Stopped(task, signal)) => {
                let _ = ptrace::syscall(task, signal);
                continue;
            }
            Ok(WaitStatus::Exited(task, code)) if task == main => {
                status = Some(code);
                continue;
            }
            Ok(_) => continue,
            Err(Errno::ECHILD) => break,
            Err(errno) => panic!("waitpid: {errno}"),
        };
        // The thread was killed in the meantime.
        let _ = ptrace::syscall(task, None);
    }
    if killed {
        return Ended::Killed;
    }
    assert_eq!(status, Some(0), "the program failed without being killed");
    Ended::ByItself(count)
}

/// Reports whether a thread that stopped at a system call is about to change a file.
fn changes(task: Pid, folder: &Path) -> bool {
    let Ok(Some(call)) = entered(task) else { return false };
    let (number, arguments) = call;
    match number {
        libc::SYS_openat => arguments[2] & i64::from(libc::O_CREAT) != 0,
        libc::SYS_write
        | libc::SYS_pwrite64
        | libc::SYS_writev
        | libc::SYS_pwritev
        | libc::SYS_pwritev2
        | libc::SYS_ftruncate
        | libc::SYS_fallocate => is_beneath(task, arguments[0], folder),
        libc::SYS_copy_file_range => is_beneath(task, arguments[2], folder),
        _ => always(number),
    }
}

fn is_beneath(task: Pid, descriptor: i64, folder: &Path) -> bool {
    fs::read_link(format!("/proc/{task}/fd/{descriptor}")).is_ok_and(|path| path.starts_with(folder))
}

/// Reports whether a system call changes a file with any arguments.
fn always(number: i64) -> bool {
    #[cfg(target_arch = "x86_64")]
    let older = [
        libc::SYS_creat,
        libc::SYS_rename,
        libc::SYS_link,
        libc::SYS_symlink,
        libc::SYS_mkdir,
        libc::SYS_rmdir,
        libc::SYS_unlink,
        libc::SYS_chmod,
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let older: [i64; 0] = [];
    let calls = [
        libc::SYS_sendfile,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_linkat,
        libc::SYS_symlinkat,
        libc::SYS_mkdirat,
        libc::SYS_unlinkat,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchownat,
        libc::SYS_utimensat,
        libc::SYS_setxattr,
        libc::SYS_fsetxattr,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
    ];
    calls.contains(&number) || older.contains(&number)
}

/// Returns the number and the arguments of the call that a thread enters; `None` if it returns from a call.
#[cfg(target_arch = "x86_64")]
fn entered(task: Pid) -> nix::Result<Option<(i64, [i64; 3])>> {
    let registers = ptrace::getregs(task)?;
    // The return register has this value while the call has not returned.
    if registers.rax.cast_signed() != -i64::from(libc::ENOSYS) {
        return Ok(None);
    }
    let arguments = [registers.rdi, registers.rsi, registers.rdx].map(u64::cast_signed);
    Ok(Some((registers.orig_rax.cast_signed(), arguments)))
}

#[cfg(target_arch = "aarch64")]
fn entered(task: Pid) -> nix::Result<Option<(i64, [i64; 3])>> {
    let registers = ptrace::getregs(task)?;
    // 0 at the entry of a call, 1 at its return.
    if registers.regs[7] != 0 {
        return Ok(None);
    }
    let arguments = [registers.regs[0], registers.regs[1], registers.regs[2]].map(u64::cast_signed);
    Ok(Some((registers.regs[8].cast_signed(), arguments)))
}
