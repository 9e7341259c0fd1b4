//! Groups of processes over PyTorch's c10d: handles of the C++ objects.

use super::{check, pointers};
use anyhow::Result;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::time::Duration;
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn p3d_backends() -> c_int;
    fn p3d_nccl_loadable() -> c_int;
    fn p3d_store_tcp(host: *const c_char, port: u16, serve: c_int, world: usize, limit_ms: i64) -> *mut c_void;
    #[cfg(test)]
    fn p3d_store_memory(limit_ms: i64) -> *mut c_void;
    fn p3d_store_free(store: *mut c_void);
    fn p3d_store_set(store: *mut c_void, key: *const c_char, value: *const u8, n: usize) -> c_int;
    fn p3d_store_get(
        store: *mut c_void,
        key: *const c_char,
        limit_ms: i64,
        context: *mut c_void,
        visit: extern "C" fn(*mut c_void, *const u8, usize),
    ) -> c_int;
    fn p3d_group_new(store: *mut c_void, rank: c_int, world: c_int, limit_ms: i64) -> *mut c_void;
    fn p3d_group_use_nccl(group: *mut c_void) -> c_int;
    fn p3d_group_free(group: *mut c_void);
    fn p3d_group_lost(group: *mut c_void) -> *const c_char;
    fn p3d_group_close(group: *mut c_void, why: *const c_char);
    fn p3d_group_numbers(group: *mut c_void, own: *const i64, n: usize, all: *mut i64) -> c_int;
    fn p3d_group_bytes(group: *mut c_void, own: *const u8, n: usize, all: *mut u8) -> c_int;
    fn p3d_group_gather(group: *mut c_void, x: *mut C_tensor, rows: *const i64, out: *mut C_tensor) -> c_int;
    fn p3d_group_sum(group: *mut c_void, x: *mut C_tensor, out: *mut C_tensor) -> c_int;
    fn p3d_group_broadcast(group: *mut c_void, tensors: *const *mut C_tensor, n: usize) -> c_int;
    fn p3d_reducer_new(group: *mut c_void, parameters: *const *mut C_tensor, n: usize, bucket_bytes: usize) -> *mut c_void;
    fn p3d_reducer_free(reducer: *mut c_void);
    fn p3d_reducer_arm(reducer: *mut c_void) -> c_int;
    fn p3d_reducer_finish(reducer: *mut c_void, counts: *mut usize) -> c_int;
}

/// Whether this build has Gloo, for tensors on the CPU.
pub fn has_gloo() -> bool {
    // SAFETY: returns a constant.
    unsafe { p3d_backends() & 1 != 0 }
}

/// Whether this build has NCCL, for tensors on GPUs.
pub fn has_nccl() -> bool {
    // SAFETY: returns a constant.
    unsafe { p3d_backends() & 2 != 0 }
}

/// Whether NCCL can be used, after [`load_cuda`](super::load_cuda): the error says why not.
pub fn nccl_loadable() -> Result<()> {
    // SAFETY: looks symbols up.
    check("NCCL", unsafe { p3d_nccl_loadable() })
}

/// A pointer that the shim gave, or its message.
fn made(what: &str, pointer: *mut c_void) -> Result<*mut c_void> {
    check(what, pointer.is_null() as c_int).map(|()| pointer)
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// For text of ours, which holds no NUL, or only by a user's mistake that libtorch will report.
fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).expect("no NUL is left")
}

/// Keys and values that all ranks see.
pub struct Store(*mut c_void);

// SAFETY: c10d's stores lock themselves.
unsafe impl Send for Store {}
// SAFETY: likewise.
unsafe impl Sync for Store {}

impl Store {
    /// Over TCP; the rank that serves it does so while it lives, and waits for all to come.
    pub fn tcp(host: &str, port: u16, serve: bool, world: usize, limit: Duration) -> Result<Store> {
        // SAFETY: the string lives through the call.
        let store = unsafe { p3d_store_tcp(c_string(host).as_ptr(), port, serve as c_int, world, milliseconds(limit)) };
        Ok(Store(made("store", store)?))
    }

    /// Of ranks that are threads of this process.
    #[cfg(test)]
    pub fn memory(limit: Duration) -> Store {
        // SAFETY: makes a map in memory.
        Store(unsafe { p3d_store_memory(milliseconds(limit)) })
    }

    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        // SAFETY: pointer and length are the slice's; the shim copies.
        check("store", unsafe { p3d_store_set(self.0, c_string(key).as_ptr(), value.as_ptr(), value.len()) })
    }

    /// The key's value, if it has one by the limit.
    pub fn get(&self, key: &str, limit: Duration) -> Result<Option<Vec<u8>>> {
        extern "C" fn visit(found: *mut c_void, value: *const u8, n: usize) {
            let mut bytes = vec![0; n];
            // SAFETY: `found` is the local below; the shim passes a buffer of `n` bytes, which may be null for none.
            unsafe {
                if n > 0 {
                    value.copy_to_nonoverlapping(bytes.as_mut_ptr(), n);
                }
                *(found as *mut Option<Vec<u8>>) = Some(bytes);
            }
        }
        let mut found: Option<Vec<u8>> = None;
        let context = &mut found as *mut _ as *mut c_void;
        // SAFETY: `visit` is called at most once, within the call.
        check("store", unsafe { p3d_store_get(self.0, c_string(key).as_ptr(), milliseconds(limit), context, visit) })?;
        Ok(found)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once.
        unsafe { p3d_store_free(self.0) };
    }
}

/// Connections to all other ranks.
pub struct Group {
    raw: *mut c_void,
    world: usize,
}

// SAFETY: libtorch's groups may be used from any thread, one at a time, which the order of collectives asks for anyhow.
unsafe impl Send for Group {}
// SAFETY: likewise.
unsafe impl Sync for Group {}

impl Group {
    /// Waits for all ranks to do the same.
    pub fn new(store: &Store, rank: usize, world: usize, limit: Duration) -> Result<Group> {
        // SAFETY: the store is live; the group keeps it by its own count.
        let raw = unsafe { p3d_group_new(store.0, rank as c_int, world as c_int, milliseconds(limit)) };
        Ok(Group { raw: made("group", raw)?, world })
    }

    /// From here on tensors on GPUs travel between GPUs, without it over the CPU.
    pub fn use_nccl(&self) -> Result<()> {
        // SAFETY: a live group.
        check("NCCL", unsafe { p3d_group_use_nccl(self.raw) })
    }

    /// Why a collective failed first; none works from then on.
    pub fn lost(&self) -> Option<String> {
        // SAFETY: a NUL-terminated string of this thread, valid until the next call.
        let reason = unsafe { CStr::from_ptr(p3d_group_lost(self.raw)) }.to_string_lossy().into_owned();
        (!reason.is_empty()).then_some(reason)
    }

    /// Ends the connections, so that the other ranks' collectives fail.
    pub fn close(&self, why: &str) {
        // SAFETY: the string lives through the call.
        unsafe { p3d_group_close(self.raw, c_string(why).as_ptr()) };
    }

    /// These numbers of every rank, as many of each.
    pub fn numbers<const N: usize>(&self, own: [i64; N]) -> Result<Vec<[i64; N]>> {
        let mut all = vec![[0; N]; self.world];
        // SAFETY: `all` has room for `N` numbers of every rank.
        check("the group of ranks", unsafe { p3d_group_numbers(self.raw, own.as_ptr(), N, all.as_mut_ptr().cast()) })?;
        Ok(all)
    }

    /// The bytes of every rank, one after the other; each has as many.
    pub fn bytes(&self, own: &[u8]) -> Result<Vec<u8>> {
        let mut all = vec![0; own.len() * self.world];
        // SAFETY: `all` has room for the bytes of every rank.
        check("the group of ranks", unsafe { p3d_group_bytes(self.raw, own.as_ptr(), own.len(), all.as_mut_ptr()) })?;
        Ok(all)
    }

    /// Rows of all ranks; `rows` says how many each has.
    pub fn gather(&self, x: &Tensor, rows: &[i64]) -> Result<Tensor> {
        assert_eq!(rows.len(), self.world, "a number of rows for each rank");
        let mut out = Tensor::new();
        // SAFETY: live tensors; `out` is overwritten by assignment.
        let status = unsafe { p3d_group_gather(self.raw, x.as_ptr() as *mut C_tensor, rows.as_ptr(), out.as_mut_ptr()) };
        check("the group of ranks", status)?;
        Ok(out)
    }

    pub fn sum(&self, x: &Tensor) -> Result<Tensor> {
        let mut out = Tensor::new();
        // SAFETY: as above.
        check("the group of ranks", unsafe { p3d_group_sum(self.raw, x.as_ptr() as *mut C_tensor, out.as_mut_ptr()) })?;
        Ok(out)
    }

    /// Of rank 0, in place.
    pub fn broadcast(&self, tensors: &[Tensor]) -> Result<()> {
        let all = pointers(tensors);
        // SAFETY: every pointer is a live tensor's.
        check("the group of ranks", unsafe { p3d_group_broadcast(self.raw, all.as_ptr(), all.len()) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: made by the shim, given back once; graphs and reducers hold counts of their own.
        unsafe { p3d_group_free(self.raw) };
    }
}

/// See [`crate::group::Reducer`].
pub struct Reducer(*mut c_void);

// SAFETY: libtorch's objects are bound to no thread.
unsafe impl Send for Reducer {}

impl Reducer {
    /// A bucket is closed when it holds this many bytes.
    pub fn new(group: &Group, parameters: &[Tensor], bucket_bytes: usize) -> Result<Reducer> {
        let all = pointers(parameters);
        // SAFETY: live tensors and a live group, of which the reducer keeps counts.
        let raw = unsafe { p3d_reducer_new(group.raw, all.as_ptr(), all.len(), bucket_bytes) };
        Ok(Reducer(made("reducing gradients", raw)?))
    }

    pub fn arm(&mut self) -> Result<()> {
        // SAFETY: a live reducer.
        check("reducing gradients", unsafe { p3d_reducer_arm(self.0) })
    }

    /// How many buckets there were, and how many of them left within the backward pass.
    pub fn finish(&mut self) -> Result<[usize; 2]> {
        let mut counts = [0; 2];
        // SAFETY: room for two numbers.
        check("reducing gradients", unsafe { p3d_reducer_finish(self.0, counts.as_mut_ptr()) })?;
        Ok(counts)
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once; it takes its hooks off the parameters.
        unsafe { p3d_reducer_free(self.0) };
    }
}
