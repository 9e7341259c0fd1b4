//! Processes started by this one.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Starts a process that a terminal's Ctrl-C does not reach, that is told to stop (SIGTERM) when this process dies, and that
/// keeps `lock` locked while it lives.
pub fn spawn_bound(command: &mut Command, lock: &File) -> io::Result<Child> {
    let lock = lock.as_raw_fd();
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe system calls are made.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 || libc::fcntl(lock, libc::F_SETFD, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Asks a child to stop.
pub fn terminate(child: &Child) {
    // SAFETY: a child that has not been waited for keeps its number.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
}
