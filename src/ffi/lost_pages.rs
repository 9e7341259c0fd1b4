//! Pages of a mapped file that are not there any more: the system ends a process that reads them by SIGBUS, and says nothing of the file.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{mem, ptr};

const BEFORE: &[u8] = b"error: ";
const AFTER: &[u8] =
    b": cannot be read any more: it was cut off while it was read, or its disk or network fails; once it is whole again \
(a store's file: delete it and preprocess again), go on from the last checkpoint\n";

/// From now on such a read ends the process with exit code 1 and a message with the file's path.
pub fn name_lost_pages() {
    // SAFETY: the handler makes only calls that are allowed in one.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    // SAFETY: the system gives the address with this signal; nothing is allocated or locked here.
    unsafe {
        let mut line = Line { text: [0; LONGEST], length: 0 };
        if !line.find((*info).si_addr() as usize) {
            // Not a mapped file: as if there were no handler.
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        // Several threads may read the same file.
        if TOLD.swap(true, Ordering::Relaxed) {
            loop {
                libc::pause();
            }
        }
        for part in [BEFORE, line.path(), AFTER] {
            libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len());
        }
        libc::_exit(1);
    }
}

/// The longest path, and what stands before it.
const LONGEST: usize = 4096 + 128;

/// A line of `/proc/self/maps`: `start-end permissions offset device inode path`.
struct Line {
    text: [u8; LONGEST],
    length: usize,
}

impl Line {
    /// Reads the line of the mapping that holds an address; whether there is one of a file.
    fn find(&mut self, address: usize) -> bool {
        // SAFETY: plain system calls, which are allowed in a signal's handler.
        let file = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        let mut block = [0u8; 1024];
        loop {
            // SAFETY: as above, into a block of this length. A file that could not be opened gives -1.
            let read = unsafe { libc::read(file, block.as_mut_ptr().cast(), block.len()) };
            if read <= 0 {
                return false;
            }
            for &byte in &block[..read as usize] {
                if byte == b'\n' {
                    if self.holds(address) {
                        return self.path().starts_with(b"/");
                    }
                    self.length = 0;
                } else if self.length < LONGEST {
                    self.text[self.length] = byte;
                    self.length += 1;
                }
            }
        }
    }

    fn holds(&self, address: usize) -> bool {
        let mut ends = self.text[..self.length].split(|byte| b"- ".contains(byte)).map(|digits| {
            digits.iter().try_fold(0usize, |number, &digit| Some(number << 4 | (digit as char).to_digit(16)? as usize))
        });
        let (start, end) = (ends.next().flatten(), ends.next().flatten());
        start.is_some_and(|start| start <= address) && end.is_some_and(|end| address < end)
    }

    /// Nothing where the mapping is of no file.
    fn path(&self) -> &[u8] {
        let line = &self.text[..self.length];
        &line[line.iter().position(|&byte| byte == b'/').unwrap_or(self.length)..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memmap2::Mmap;
    use std::fs::File;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn the_file_of_an_address_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("a name-with spaces");
        std::fs::write(&path, [7; 10_000]).unwrap();
        // SAFETY: nobody writes to it.
        let map = unsafe { Mmap::map(&File::open(&path).unwrap()) }.unwrap();
        let mut line = Line { text: [0; LONGEST], length: 0 };
        assert!(line.find(map.as_ptr() as usize + 9_999));
        assert_eq!(line.path(), path.as_os_str().as_bytes());
        let mut other = Line { text: [0; LONGEST], length: 0 };
        assert!(!other.find(Box::new(1).as_ref() as *const i32 as usize));
    }
}
