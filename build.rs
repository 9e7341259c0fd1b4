//! Compiles the C++ files against the libtorch that torch-sys found, and lets the binary find that libtorch at run time.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=src/ffi");
    let lib = PathBuf::from(
        std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys must say where libtorch is (set LIBTORCH_USE_PYTORCH=1)"),
    );
    let include = lib.with_file_name("include");
    let mut shim = cc::Build::new();
    shim.cpp(true)
        .std("c++17")
        .warnings(false)
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"));
    // Headers of backends of c10d, which torch's package has not got: what is missing is left out of the build. scripts/env.sh puts them there.
    println!("cargo:rerun-if-env-changed=PRETEXT3D_C10D");
    let fetched = std::env::var_os("PRETEXT3D_C10D").map(PathBuf::from).unwrap_or_else(|| target().join("c10d"));
    let packages = lib.ancestors().nth(2).expect("torch/lib lies in a folder");
    let mut nccl = None;
    // Of both the classes are libtorch's own, whose layout depends on no version of Gloo or NCCL.
    if let Some(gloo) = find(["gloo/algorithm.h"], &[&fetched.join("include"), Path::new("/usr/include")]) {
        shim.define("USE_C10D_GLOO", None).includes(gloo);
    }
    let cuda =
        [fetched.join("nvidia/cu13/include"), packages.join("nvidia/cu13/include"), packages.join("nvidia/nccl/include")];
    if let Some(cuda) =
        find(["nccl.h", "cuda_runtime.h", "crt/host_config.h", "nv/target"], &cuda.each_ref().map(PathBuf::as_path))
    {
        nccl = Some(shim.clone().define("USE_C10D_NCCL", None).includes(cuda).file("src/ffi/nccl.cpp").compile_intermediates());
        shim.define("P3D_NCCL", None);
    }
    shim.files(["shim", "c10d", "reducer"].map(|name| format!("src/ffi/{name}.cpp")))
        .objects(nccl.into_iter().flatten())
        .compile("p3d_shim");
    // A wheel names its own place, relative to the program, since it is built in one environment and installed in another.
    println!("cargo:rerun-if-env-changed=PRETEXT3D_RPATH");
    let rpath = std::env::var("PRETEXT3D_RPATH").unwrap_or_else(|_| lib.display().to_string());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{rpath}");
}

/// Cargo's target folder.
fn target() -> PathBuf {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names it"));
    out.ancestors().nth(4).expect("OUT_DIR is target/PROFILE/build/PACKAGE/out").to_path_buf()
}

/// The folders that hold these headers; `None` if one of them is nowhere.
fn find<const N: usize>(headers: [&str; N], folders: &[&Path]) -> Option<Vec<PathBuf>> {
    let mut found = Vec::new();
    for header in headers {
        let folder = folders.iter().find(|folder| folder.join(header).is_file())?;
        println!("cargo:rerun-if-changed={}", folder.join(header).display());
        found.push(folder.to_path_buf());
    }
    Some(found)
}
