//! Building and saving TorchScript modules with real parameters.

use super::check;
use crate::fs::open_zip;
use crate::nn::script::ScriptModule;
use anyhow::{Context, Result};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tch::Tensor;
use torch_sys::C_tensor;

type Visit = unsafe extern "C" fn(*mut c_void, *const c_char, *mut C_tensor);

#[repr(C)]
struct P3dModule {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn p3d_module_new(name: *const c_char, sibling: *mut P3dModule) -> *mut P3dModule;
    fn p3d_module_free(module: *mut P3dModule);
    fn p3d_module_parameter(module: *mut P3dModule, name: *const c_char, value: *mut C_tensor) -> c_int;
    fn p3d_module_buffer(module: *mut P3dModule, name: *const c_char, value: *mut C_tensor) -> c_int;
    fn p3d_module_child(module: *mut P3dModule, name: *const c_char, child: *mut P3dModule) -> c_int;
    fn p3d_module_define(module: *mut P3dModule, source: *const c_char) -> c_int;
    fn p3d_module_save(module: *mut P3dModule, path: *const c_char, extra_name: *const c_char, extra: *const c_char) -> c_int;
    fn p3d_module_state(path: *const c_char, context: *mut c_void, visit: Visit) -> c_int;
}

/// Name of the JSON description inside a `.pt`.
const EXTRA: &str = "pretext3d.json";

/// A module under construction, freed on drop.
struct Module(*mut P3dModule);

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: made by `p3d_module_new` and freed once; libtorch counts references to what lies inside.
        unsafe { p3d_module_free(self.0) }
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).with_context(|| format!("a NUL byte in {text:?}"))
}

/// Builds `module` under the qualified name; `root` is any module of the same tree, whose compilation unit is shared.
fn build(name: &str, module: &ScriptModule, root: Option<&Module>) -> Result<Module> {
    let sibling = root.map_or(std::ptr::null_mut(), |m| m.0);
    // SAFETY: strings are NUL-terminated and outlive each call; tensors and modules are live.
    unsafe {
        let built = Module(p3d_module_new(c_string(name)?.as_ptr(), sibling));
        check(name, built.0.is_null() as c_int)?;
        let root = root.unwrap_or(&built);
        for (key, value) in &module.parameters {
            check(key, p3d_module_parameter(built.0, c_string(key)?.as_ptr(), value.as_ptr() as *mut C_tensor))?;
        }
        for (key, value) in &module.buffers {
            check(key, p3d_module_buffer(built.0, c_string(key)?.as_ptr(), value.as_ptr() as *mut C_tensor))?;
        }
        for (key, child) in &module.children {
            let child = build(&format!("{name}_{key}"), child, Some(root))?;
            check(key, p3d_module_child(built.0, c_string(key)?.as_ptr(), child.0))?;
        }
        check(name, p3d_module_define(built.0, c_string(&module.source)?.as_ptr()))?;
        Ok(built)
    }
}

/// Saves the module for `torch.jit.load`, with `description` as the extra file `pretext3d.json`.
pub fn save_script(module: &ScriptModule, path: &Path, description: &str) -> Result<()> {
    let built = build("__torch__.Pretext3d", module, None)?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: as in `build`.
    let status = unsafe { p3d_module_save(built.0, path.as_ptr(), c_string(EXTRA)?.as_ptr(), c_string(description)?.as_ptr()) };
    check("saving TorchScript", status)
}

/// The JSON description in a TorchScript file of ours; null in others.
pub fn description(path: &Path) -> Result<serde_json::Value> {
    let broken = || format!("reading {} (expected a whole TorchScript file)", path.display());
    let mut archive = open_zip(std::fs::File::open(path).with_context(broken)?).with_context(broken)?;
    let suffix = format!("/extra/{EXTRA}");
    for i in 0..archive.len() {
        let file = archive.by_index(i).with_context(broken)?;
        if file.name().with_context(broken)?.ends_with(&suffix) {
            return serde_json::from_reader(file).with_context(broken);
        }
    }
    Ok(serde_json::Value::Null)
}

/// Parameters and buffers of a TorchScript file, by name, on the CPU.
pub fn read_state(path: &Path) -> Result<Vec<(String, Tensor)>> {
    unsafe extern "C" fn collect(context: *mut c_void, name: *const c_char, tensor: *mut C_tensor) {
        // SAFETY: the context is the vector below; the name lives during the call; the tensor is handed over.
        unsafe {
            let out = &mut *context.cast::<Vec<(String, Tensor)>>();
            out.push((CStr::from_ptr(name).to_string_lossy().into_owned(), Tensor::from_ptr(tensor)));
        }
    }
    let mut out: Vec<(String, Tensor)> = Vec::new();
    let file = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `out` outlives the call.
    let status = unsafe { p3d_module_state(file.as_ptr(), (&raw mut out).cast(), collect) };
    check(&format!("reading {} as TorchScript", path.display()), status)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_modules_are_equal_files_and_a_full_disk_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let module = ScriptModule::new("def forward(self, x: Tensor) -> Tensor:\n    return x\n");
        let files = ["a.pt", "another.pt"].map(|name| {
            save_script(&module, &dir.path().join(name), "{}").unwrap();
            std::fs::read(dir.path().join(name)).unwrap()
        });
        assert_eq!(files[0], files[1]);
        assert_eq!(description(&dir.path().join("a.pt")).unwrap(), serde_json::json!({}));
        let full = Path::new("/dev/full");
        if full.exists() {
            assert!(save_script(&module, full, "{}").unwrap_err().to_string().contains("No space left"));
        }
    }
}
