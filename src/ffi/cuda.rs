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
                Err(e) => Err(reason(e)),
            }
        })
        .clone()
}

/// The dynamic linker's words, which the error keeps as its source.
fn reason(error: libloading::Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

/// A GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Gpu {
    pub name: String,
    /// Bytes.
    pub memory: u64,
    /// Major and minor; bfloat16 is fast from 8.0 on.
    pub compute_capability: [i32; 2],
}

/// The GPUs that this process may use, in libtorch's order; an error says what the driver lacks.
pub fn gpus() -> Result<Vec<Gpu>, String> {
    use libloading::os::unix::Library;
    use std::ffi::{CStr, c_char, c_int};
    let ok = |call: &str, status: c_int| if status == 0 { Ok(()) } else { Err(format!("{call}: CUDA error {status}")) };
    // SAFETY: these signatures are the driver API's own (cuda.h); each call gets valid pointers, and `name` stays terminated.
    unsafe {
        let driver = Library::new("libcuda.so.1").map_err(reason)?;
        let init = driver.get::<unsafe extern "C" fn(c_int) -> c_int>(b"cuInit").map_err(reason)?;
        let count = driver.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount").map_err(reason)?;
        let get = driver.get::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>(b"cuDeviceGet").map_err(reason)?;
        let get_name =
            driver.get::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(b"cuDeviceGetName").map_err(reason)?;
        let total = driver.get::<unsafe extern "C" fn(*mut usize, c_int) -> c_int>(b"cuDeviceTotalMem_v2").map_err(reason)?;
        let get_attribute =
            driver.get::<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int>(b"cuDeviceGetAttribute").map_err(reason)?;
        ok("cuInit", init(0))?;
        let mut n = 0;
        ok("cuDeviceGetCount", count(&mut n))?;
        let gpu = |i: c_int| {
            let (mut device, mut memory, mut name) = (0, 0usize, [0 as c_char; 256]);
            ok("cuDeviceGet", get(&mut device, i))?;
            ok("cuDeviceGetName", get_name(name.as_mut_ptr(), name.len() as c_int - 1, device))?;
            ok("cuDeviceTotalMem", total(&mut memory, device))?;
            // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
            let mut compute_capability = [0; 2];
            for (value, attribute) in compute_capability.iter_mut().zip([75, 76]) {
                ok("cuDeviceGetAttribute", get_attribute(value, attribute, device))?;
            }
            let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
            Ok(Gpu { name, memory: memory as u64, compute_capability })
        };
        let found = (0..n).map(gpu).collect();
        // The driver's threads outlive this function.
        std::mem::forget(driver);
        found
    }
}
