//! All C++ and all `unsafe` calls into libtorch beyond tch: thin safe wrappers over `shim.cpp`.

mod checkpoint;
mod cuda;
pub mod group;
mod lost_pages;
mod process;
mod script;

pub use checkpoint::{checkpoint, with_checkpointing};
pub use cuda::{Gpu, gpus, load_cuda};
pub use lost_pages::name_lost_pages;
pub use process::{skip_destructors, spawn_bound, terminate};
pub use script::{description, read_state, save_script};

use anyhow::{Result, bail};
use std::ffi::{CStr, c_char, c_int};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn p3d_error() -> *const c_char;
    fn p3d_compiled_version() -> *const c_char;
    fn p3d_config() -> *const c_char;
    fn p3d_autocast_get(cuda: c_int) -> c_int;
    fn p3d_autocast_set(cuda: c_int, enabled: c_int) -> c_int;
    fn p3d_autocast_clear() -> c_int;
    fn p3d_set_memory_format(tensor: *mut C_tensor, format: c_int) -> c_int;
    fn p3d_optimizer_step(
        kind: c_int,
        params: *const *mut C_tensor,
        grads: *const *mut C_tensor,
        first: *const *mut C_tensor,
        second: *const *mut C_tensor,
        steps: *const *mut C_tensor,
        n: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> c_int;
    fn p3d_pin(tensor: *mut C_tensor) -> c_int;
    fn p3d_clear_gradient(tensor: *mut C_tensor);
    fn p3d_clip_gradients(grads: *const *mut C_tensor, n: usize, max_norm: f64, norm: *mut C_tensor) -> c_int;
}

/// Turns the shim's status into a result with libtorch's message.
fn check(what: &str, status: c_int) -> Result<()> {
    if status != 0 {
        // SAFETY: the shim returns a NUL-terminated string owned by this thread, valid until the next call.
        let message = unsafe { CStr::from_ptr(p3d_error()) }.to_string_lossy();
        bail!("{what}: {}", message.trim().lines().next().unwrap_or_default());
    }
    Ok(())
}

/// The version of libtorch's headers that the shim was compiled with.
pub fn compiled_version() -> String {
    // SAFETY: a static NUL-terminated string.
    unsafe { CStr::from_ptr(p3d_compiled_version()) }.to_string_lossy().into_owned()
}

/// The build settings of the libtorch that is running, as `torch.__config__.show()`, and its CPU capability.
pub fn torch_config() -> String {
    // SAFETY: a static NUL-terminated string.
    unsafe { CStr::from_ptr(p3d_config()) }.to_string_lossy().into_owned()
}

fn pointers(tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(|t| t.as_ptr() as *mut C_tensor).collect()
}

/// Whether operations on this kind of device currently run in bfloat16 where that is safe.
pub fn autocast_enabled(device: Device) -> bool {
    // SAFETY: reads a flag of this thread.
    unsafe { p3d_autocast_get(device.is_cuda() as c_int) != 0 }
}

fn set_autocast(device: Device, enabled: bool) {
    // SAFETY: sets flags of this thread; both device types exist in every build of libtorch.
    let status = unsafe { p3d_autocast_set(device.is_cuda() as c_int, enabled as c_int) };
    check("setting autocast", status).expect("CPU and CUDA autocast exist");
}

/// Restores the flag when the scope ends, also by a panic.
struct AutocastScope(Device, bool);

impl Drop for AutocastScope {
    fn drop(&mut self) {
        set_autocast(self.0, self.1);
    }
}

/// Runs `f` with bfloat16 autocast on this kind of device, as `torch.autocast(dtype=torch.bfloat16)` does.
pub fn with_autocast<T>(device: Device, enabled: bool, f: impl FnOnce() -> T) -> T {
    let scope = AutocastScope(device, autocast_enabled(device));
    set_autocast(device, enabled);
    let out = f();
    if !scope.1 {
        // SAFETY: drops cached copies of weights, which the next optimizer step makes stale.
        unsafe { p3d_autocast_clear() };
    }
    out
}

/// Runs `f` without autocast inside a [`with_autocast`] scope.
pub fn without_autocast<T>(device: Device, f: impl FnOnce() -> T) -> T {
    let _restore = AutocastScope(device, autocast_enabled(device));
    set_autocast(device, false);
    f()
}

/// How the axes of a tensor lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFormat {
    Contiguous,
    /// Channels vary fastest; tensors of other than 4 or 5 dimensions stay contiguous.
    ChannelsLast,
}

/// Lays a tensor out anew; its values and its identity as a parameter stay.
pub fn set_memory_format(tensor: &Tensor, format: MemoryFormat) -> Result<()> {
    let format = (format == MemoryFormat::ChannelsLast) as c_int;
    // SAFETY: the pointer is a live tensor's; set_data swaps its storage under libtorch's own reference counts.
    check("changing the memory format", unsafe { p3d_set_memory_format(tensor.as_ptr() as *mut C_tensor, format) })
}

/// Moves a CPU tensor to page-locked memory, from which copies to a GPU overlap with computing.
pub fn pin(tensor: &mut Tensor) -> Result<()> {
    // SAFETY: the pointer is a live tensor's; it is overwritten by assignment.
    check("page-locking a batch", unsafe { p3d_pin(tensor.as_mut_ptr()) })
}

/// Update rules of [`optimizer_step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Rule {
    AdamW = 0,
    Adam = 1,
    Sgd = 2,
}

/// Numbers of one optimizer step. For SGD `beta1` is the momentum and `beta2` and `eps` are unused.
#[derive(Clone, Copy, Debug)]
pub struct StepSizes {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    pub eps: f64,
}

/// Optimizer state, one tensor a parameter; SGD keeps its momentum in `first` and ignores the others.
#[derive(Clone, Copy)]
pub struct Moments<'a> {
    pub first: &'a [Tensor],
    pub second: &'a [Tensor],
    /// Updates made, float scalars.
    pub steps: &'a [Tensor],
}

/// One fused update of `params` and `moments` in place. All lists have equal length.
pub fn optimizer_step(rule: Rule, params: &[Tensor], grads: &[Tensor], moments: Moments, sizes: StepSizes) -> Result<()> {
    let n = params.len();
    let lists = [params, grads, moments.first, moments.second, moments.steps];
    assert!(lists.iter().all(|l| l.len() == n), "one gradient and state per parameter");
    let [p, g, m, v, s] = lists.map(pointers);
    // SAFETY: every pointer is a live tensor's and every list has `n` entries.
    let status = unsafe {
        p3d_optimizer_step(
            rule as c_int,
            p.as_ptr(),
            g.as_ptr(),
            m.as_ptr(),
            v.as_ptr(),
            s.as_ptr(),
            n,
            sizes.lr,
            sizes.beta1,
            sizes.beta2,
            sizes.weight_decay,
            sizes.eps,
        )
    };
    check("optimizer step", status)
}

/// Drops the gradient, so that the next backward pass writes instead of adding.
pub fn clear_gradient(parameter: &mut Tensor) {
    // SAFETY: the pointer is a live tensor's.
    unsafe { p3d_clear_gradient(parameter.as_mut_ptr()) }
}

/// Scales gradients in place to a joint L2 norm of at most `max_norm` (0: leaves them); returns the norm before, a scalar
/// tensor on their device.
pub fn clip_gradients(grads: &[Tensor], max_norm: f64) -> Result<Tensor> {
    let mut norm = Tensor::new();
    let g = pointers(grads);
    // SAFETY: every pointer is a live tensor's; `norm` is overwritten by assignment.
    check("clipping gradients", unsafe { p3d_clip_gradients(g.as_ptr(), g.len(), max_norm, norm.as_mut_ptr()) })?;
    Ok(norm)
}
