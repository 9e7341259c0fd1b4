# Sourced by the Makefile's recipes. Checks the tools, finds a Python with the torch that tch needs or makes .venv with it,
# and leaves PYTHON, TARGET and cargo's environment set. Tells the user in one line what is missing.

torch_version=$(sed -n 's/.*"torch == \([^"]*\)".*/\1/p' pyproject.toml)
TARGET=${CARGO_TARGET_DIR:-target}

. scripts/run.sh

# Sets PYTHON and torch (its folder) if this Python has the wanted torch, with the libraries and headers to build against.
# Reads version.py instead of importing torch, which would take seconds.
use_python() {
    found=$("$1" - "$torch_version" 2>/dev/null <<'PY'
import importlib.util, pathlib, sys
folder = pathlib.Path(importlib.util.find_spec("torch").origin).parent
version = {}
exec((folder / "version.py").read_text(), version)
assert str(version["__version__"]).split("+")[0] == sys.argv[1]
assert list(folder.glob("lib/libtorch.*")) and (folder / "include/torch/csrc/api/include/torch/torch.h").exists()
print(sys.executable, folder, sep="\n")
PY
    ) || return 1
    PYTHON=$(echo "$found" | sed -n 1p)
    torch=$(echo "$found" | sed -n 2p)
}

# Whether this Python can make virtual environments; otherwise says why not.
can_make_venvs() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
        echo "error: $1 is $("$1" --version 2>&1 | head -n 1): install Python 3.10 or newer, or name one: PYTHON=python3.12" >&2
        return 1
    }
    "$1" -c 'import venv, ensurepip' 2>/dev/null || {
        echo "error: $1 cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2
        return 1
    }
}

check_tools() {
    missing=0
    rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    if ! command -v cargo >/dev/null; then
        echo "error: cargo is missing: install Rust $rust or newer (with rustup)" >&2
        missing=1
    elif ! version=$(cargo --version 2>/dev/null); then
        echo "error: cargo does not run: install a toolchain (rustup toolchain install stable)" >&2
        missing=1
    else
        minor=${version#cargo *.}
        if [ "${minor%%.*}" -lt "${rust#*.}" ]; then
            echo "error: found $version: install Rust $rust or newer (rustup update stable)" >&2
            missing=1
        fi
    fi
    cxx=${CXX:-c++}
    if ! command -v "${cxx%% *}" >/dev/null || ! command -v cc >/dev/null; then
        echo "error: a C++ compiler is missing (${cxx%% *}, cc): install g++ or clang (Debian, Ubuntu: apt install g++)" >&2
        missing=1
    fi
    if [ -z "$torch" ]; then
        if ! command -v "$base" >/dev/null; then
            echo "error: $base is missing: install Python 3.10 or newer (Debian, Ubuntu: apt install python3 python3-venv)" >&2
            missing=1
        elif ! can_make_venvs "$base"; then
            missing=1
        fi
    fi
    [ $missing = 0 ] || exit 1
}

make_venv() {
    .venv/bin/python3 -m pip --version >/dev/null 2>&1 || run "$base" -m venv --clear .venv
    echo "Installing torch $torch_version into .venv (2.5 GB; TORCH_INDEX_URL= can name an index with smaller CPU-only wheels)." >&2
    run .venv/bin/python3 -m pip install "torch==$torch_version" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
    use_python "$(pwd)/.venv/bin/python3" || fail ".venv: torch $torch_version was installed but is not complete; remove .venv and try again"
}

# A cargo build keeps the torch it was made with: start torch-sys anew if that is no longer the one in use.
drop_stale_build() {
    for output in "$TARGET"/*/build/torch-sys-*/output; do
        [ -f "$output" ] || continue
        lib=$(sed -n 's/^cargo:rustc-link-search=native=\(.*torch\/lib\)$/\1/p' "$output" | head -n 1)
        if [ "$(realpath -m "$lib")" != "$(realpath -m "$torch/lib")" ]; then
            echo "The last build used $lib; building again with $torch/lib." >&2
            run cargo clean -q -p torch-sys
            run cargo clean -q --release -p torch-sys
            return
        fi
    done
}

# What several processes need (docs/scale.md) and torch's package lacks: Gloo's headers, unless libgloo-dev is installed, and for a CUDA build of
# torch those that NCCL's ask for. Without them the build has no such backend, and says so when it is asked for one.
fetch_headers() {
    headers=$TARGET/c10d
    part=$headers/part
    gloo=horovod==0.28.1
    if [ ! -e /usr/include/gloo/algorithm.h ] && [ ! -e "$headers/include/gloo/algorithm.h" ]; then
        # A source package that holds all of Gloo's source.
        if fetch download --no-binary horovod --dest "$part" "$gloo"; then
            tar -xzf "$part"/horovod-*.tar.gz -C "$part" --strip-components=3 "horovod-${gloo#*==}/third_party/gloo"
            mkdir -p "$headers/include"
            mv "$part/gloo" "$headers/include/gloo"
        else
            echo "warning: no headers of Gloo: this build runs in one process (apt install libgloo-dev is the other way)" >&2
        fi
    fi
    if [ -e "$torch/../nvidia/cu13/include/cuda_runtime.h" ] && [ ! -e "$headers/nvidia/cu13/include/nv/target" ]; then
        if fetch install --target "$part" nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85; then
            rm -rf "$headers/nvidia"
            mv "$part/nvidia" "$headers/nvidia"
        else
            echo "warning: no headers for NCCL: in this build gradients of GPUs travel over the CPU" >&2
        fi
    fi
    rm -rf "$part"
    PRETEXT3D_C10D=$(cd "$TARGET" && pwd)/c10d
    export PRETEXT3D_C10D
}

# fetch ARGUMENTS: pip with these and no dependencies, into the empty folder $part.
fetch() {
    rm -rf "$part"
    pip=$PYTHON
    if ! "$pip" -m pip --version >/dev/null 2>&1; then
        can_make_venvs "$PYTHON" && run "$PYTHON" -m venv "$part/venv" || return 1
        pip=$part/venv/bin/python3
    fi
    run "$pip" -m pip --quiet --disable-pip-version-check --retries 1 "$@" --no-deps
}

# overlay FOLDER REQUIREMENTS: a virtual environment that sees the packages of $PYTHON, so that torch is not downloaded twice,
# and adds these. Made again when the requirements or the Python change.
overlay() {
    stamp="$PYTHON $torch $(cksum <"$2")"
    [ "$(cat "$1/stamp" 2>/dev/null)" != "$stamp" ] || return 0
    can_make_venvs "$PYTHON" || exit 1
    run "$PYTHON" -m venv --clear "$1"
    "$PYTHON" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' >"$1/base.pth"
    mv "$1/base.pth" "$("$1/bin/python3" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    run "$1/bin/python3" -m pip install --disable-pip-version-check -q -r "$2" ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"}
    echo "$stamp" >"$1/stamp"
}

set -e
torch=
base=${PYTHON:-python3}
if [ -z "$PYTHON" ] && [ -n "$VIRTUAL_ENV" ] && [ -x "$VIRTUAL_ENV/bin/python3" ]; then
    base=$VIRTUAL_ENV/bin/python3
fi
use_python "$base" || use_python "$(pwd)/.venv/bin/python3" || true
check_tools
[ -n "$torch" ] || make_venv
drop_stale_build

# torch-sys asks `python` inside a virtual environment and `python3` outside: let both be the chosen one.
mkdir -p "$TARGET/python"
for name in python python3; do
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$PYTHON" >"$TARGET/python/$name"
    chmod +x "$TARGET/python/$name"
done
PATH=$(cd "$TARGET/python" && pwd):$PATH
export PATH LIBTORCH_USE_PYTORCH=1
fetch_headers
