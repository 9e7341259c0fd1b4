//! Compiles the C++ shim against the libtorch that torch-sys found, and lets the binary find that libtorch at run time.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/ffi/shim.cpp");
    let lib = PathBuf::from(
        std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys must say where libtorch is (set LIBTORCH_USE_PYTORCH=1)"),
    );
    let include = lib.with_file_name("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/ffi/shim.cpp")
        .compile("p3d_shim");
    // A wheel names its own place, relative to the program, since it is built in one environment and installed in another.
    println!("cargo:rerun-if-env-changed=PRETEXT3D_RPATH");
    let rpath = std::env::var("PRETEXT3D_RPATH").unwrap_or_else(|_| lib.display().to_string());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{rpath}");
}
