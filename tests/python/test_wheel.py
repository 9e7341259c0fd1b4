"""The wheel: what its build is told, what is in it, and that its program starts with the torch of the environment that it is in."""
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import BINARY, ROOT, pretext3d
from test_resume import arguments, wait_for_epoch

# A cargo that notes what it was told, and gives another program for the one that takes minutes to build.
CARGO = """#!{python}
import json, os, subprocess, sys
if sys.argv[1] != "rustc":
    os.execv({cargo!r}, [{cargo!r}, *sys.argv[1:]])
metadata = subprocess.check_output([{cargo!r}, "metadata", "--no-deps", "--offline", "--format-version", "1"])
package = json.loads(metadata)["packages"][0]
target = next(target for target in package["targets"] if "bin" in target["kind"])
profile = {{"opt_level": "3", "debuginfo": 0, "debug_assertions": False, "overflow_checks": False, "test": False}}
built = {{"package_id": package["id"], "manifest_path": package["manifest_path"], "target": target, "profile": profile}}
built |= {{"features": [], "filenames": [{program!r}], "executable": {program!r}, "fresh": True}}
print(json.dumps({{"reason": "compiler-artifact", **built}}))
print(json.dumps({{"reason": "build-finished", "success": True}}))
told = {{name: os.environ.get(name) for name in ("LIBTORCH", "LIBTORCH_USE_PYTORCH", "PRETEXT3D_RPATH")}}
open({told!r}, "w").write(json.dumps({{"arguments": sys.argv[1:], **told}}))
"""


def hook(call, python=sys.executable, **env):
    """What a hook of the build backend returns."""
    code = f"import json, pretext3d_build as backend; print(json.dumps({call}))"
    paths = os.pathsep.join([str(ROOT / "python"), sysconfig.get_path("purelib")])
    done = subprocess.run([python, "-c", code], cwd=ROOT, env=os.environ | env | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A virtual environment that sees this one's packages, with the wheel. Its program is then replaced by the one under test."""
    folder = tmp_path_factory.mktemp("wheel")
    cargo, program, told = folder / "bin/cargo", folder / "pretext3d", folder / "told.json"
    cargo.parent.mkdir()
    shutil.copy(shutil.which("true"), program)
    cargo.write_text(CARGO.format(python=sys.executable, cargo=shutil.which("cargo"), program=str(program), told=str(told)))
    cargo.chmod(0o755)
    path = os.pathsep.join([str(cargo.parent), sysconfig.get_path("scripts"), os.environ["PATH"]])
    name = hook(f"backend.build_wheel({str(folder)!r})", PATH=path, LIBTORCH_USE_PYTORCH="1")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env/bin/python3"
    [site] = (folder / "env/lib").glob("python*/site-packages")
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", folder / name], check=True)
    (site / "base.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    inside = site / "pretext3d/bin/pretext3d"
    assert os.access(inside, os.X_OK) and inside.read_bytes() == program.read_bytes()
    inside.unlink()
    inside.symlink_to(BINARY)
    return SimpleNamespace(wheel=folder / name, python=python, site=site, start=folder / "env/bin/pretext3d", told=json.loads(told.read_text()))


def run(*args, **env):
    return subprocess.run(args, cwd="/", env=os.environ | env, capture_output=True, text=True)


def test_the_build_needs_no_settings_and_takes_the_environments_torch(environment, tmp_path):
    assert environment.wheel.name.startswith("pretext3d-") and "-py3-none-linux_" in environment.wheel.name
    assert environment.told["LIBTORCH"] == str(Path(torch.__file__).parent) and environment.told["LIBTORCH_USE_PYTORCH"] is None
    assert environment.told["PRETEXT3D_RPATH"] == "$ORIGIN/../../torch/lib"
    assert {"--locked", "release"} <= set(environment.told["arguments"])
    assert not [name for name in hook("backend.get_requires_for_build_wheel()") if "torch" in name]
    # Where there is none, pip gets it for the build.
    venv.create(tmp_path / "bare", symlinks=True)
    wanted = f"torch=={torch.__version__.split('+')[0]}"
    assert wanted in hook("backend.get_requires_for_build_wheel()", python=tmp_path / "bare/bin/python3")


def test_the_program_is_itself(environment, store, tmp_path):
    version = pretext3d("--version").stdout
    for started in ([environment.start], [environment.python, "-m", "pretext3d"]):
        done = run(*started, "--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, version, "")
        done = run(*started, "preprocess", "--out", tmp_path)
        assert done.returncode == 2 and "--data" in done.stderr and done.stdout == ""
    process = subprocess.Popen([environment.start, *map(str, arguments(store, tmp_path, extra=["--epochs", 1000]))], stderr=subprocess.DEVNULL)
    wait_for_epoch(process, tmp_path / "run", 1)
    assert Path(f"/proc/{process.pid}/exe").resolve() == BINARY
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    done = run(environment.python, "-c", f"import pretext3d; print(len(pretext3d.Store({str(store)!r})), pretext3d.__file__)")
    assert done.stdout.split() == ["6", str(environment.site / "pretext3d/__init__.py")], done.stderr


def test_another_torch_is_an_error_of_one_line(environment, tmp_path):
    def refused(*says, **env):
        done = run(environment.start, "--version", **env)
        assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("error: ") and all(part in done.stderr for part in says), done.stderr

    def fake(version):
        package = tmp_path / version / "torch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('imported')")
        (package / "version.py").write_text(f"__version__ = '{version}'\n")
        return {"PYTHONPATH": str(tmp_path / version)}

    wanted = torch.__version__.split("+")[0]
    refused(f"needs torch {wanted}", "found 2.4.0+cpu", str(tmp_path / "2.4.0+cpu/torch"), f"pip install torch=={wanted}", **fake("2.4.0+cpu"))
    refused("no libtorch.so", str(tmp_path / f"{wanted}+cu130/torch/lib"), "--force-reinstall", **fake(f"{wanted}+cu130"))
    hidden = environment.site / "base.pth"
    hidden.rename(tmp_path / "base.pth")
    refused(f"needs torch {wanted}", str(environment.python.parents[1]), "has none")
    (tmp_path / "base.pth").rename(hidden)
    done = run(environment.start, "--version", LD_LIBRARY_PATH="/nowhere")
    assert done.returncode == 0, done.stderr
