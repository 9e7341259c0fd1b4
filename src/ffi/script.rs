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
    use tch::{Device, Kind};

    #[test]
    fn descriptions_are_read_whatever_the_file_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let tensor = Tensor::ones([3], (Kind::Float, Device::Cpu));
        for length in 1..=80 {
            let source = "def forward(self, x: Tensor) -> Tensor:\n    return x * self.weight\n";
            let modules = (0..length % 20).fold(ScriptModule::new(source).parameter("weight", &tensor), |module, i| {
                module.child(format!("child{i}"), ScriptModule::new(source).parameter("weight", &tensor))
            });
            let path = dir.path().join("n".repeat(length) + ".pt");
            save_script(&modules, &path, r#"{"version": 1}"#).unwrap();
            assert_eq!(description(&path).unwrap(), serde_json::json!({ "version": 1 }), "{length}");
            assert_eq!(read_state(&path).unwrap().len(), 1 + length % 20);
        }
    }
}
