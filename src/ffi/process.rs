//! Processes: the end of this one, and those that it starts.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;

unsafe extern "C" {
    /// glibc's: calls `function` with the exit code at the process's end, before what was registered earlier.
    fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
}

/// From now on the process ends without the destructors of libtorch's static variables, which only hand back memory, and take longer than
/// `--version` does.
pub fn skip_destructors() {
    extern "C" fn end(code: c_int, _: *mut c_void) {
        // SAFETY: all of C's streams; ends the process.
        unsafe {
            libc::fflush(ptr::null_mut());
            libc::_exit(code)
        }
    }
    // SAFETY: a function of this signature, which reads no argument. Where there is no room for it, they run.
    unsafe { on_exit(end, ptr::null_mut()) };
}

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
