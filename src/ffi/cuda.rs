//! libtorch's CUDA half, loaded only when asked for: linking it would cost every start-up more than a second.

use std::sync::OnceLock;

static LOADED: OnceLock<Result<(), String>> = OnceLock::new();

/// Loads `libtorch_cuda.so` into the process, once; afterwards `tch::Cuda` sees the devices. Ok does not yet mean that there
/// is a device.
pub fn load_cuda() -> Result<(), String> {
    LOADED
        .get_or_init(|| {
            use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
            // SAFETY: the library is libtorch's own, found next to the libtorch already loaded; its initialisers register kernels.
            match unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => {
                    std::mem::forget(library);
                    Ok(())
                }
                Err(e) => Err(e.to_string()),
            }
        })
        .clone()
}

/// Whether this machine has NVIDIA's driver; cheap, unlike [`load_cuda`].
pub fn cuda_driver() -> Result<(), String> {
    use libloading::os::unix::Library;
    // SAFETY: the driver's library, which libtorch would load itself.
    unsafe { Library::new("libcuda.so.1") }.map(drop).map_err(|e| e.to_string())
}
