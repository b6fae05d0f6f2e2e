"""The same bits on an instruction set that this machine lacks, under emulation.

Slow (it compiles the core five times and boots Linux in an emulator): ``pytest -m slow
tests/test_emulated.py``. It needs Debian's packages

- for NEON: g++-aarch64-linux-gnu, qemu-user;
- for AVX-512: bochs, bochs-term, isolinux, syslinux-common, genisoimage, cpio, busybox-static, and
  a Linux to boot, whose path is in RNNKERN_LINUX: Debian's ``boot/vmlinuz-*``, from its package
  linux-image-*-amd64 (``dpkg-deb -x`` unpacks it without installing it).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from plan import kinds

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-static"]
SOURCES = ("kernels", "dispatch", "threads/runtime", "stack/schedule")
CORE = [ROOT / "cpp/core" / f"{name}.cpp" for name in SOURCES]


def build(driver: str, compiler: str, instruction_set: str, flags: list[str], out: Path) -> Path:
    """A driver of tests/cpp for one instruction set."""
    names = [f"-DRNNKERN_ISA={instruction_set}", f"-DRNNKERN_SETS=RNNKERN_SET({instruction_set})"]
    command = [compiler, *FLAGS, *flags, *names, f"-I{ROOT / 'cpp/core'}"]

    def cell(kind: str) -> str:  # as the build compiles them: a file for each row of the table
        target = str(out.with_name(f"{out.name}-{kind}.o"))
        source = str(ROOT / "cpp/core/cell_kernels.cpp")
        compiled = [*command, f"-DRNNKERN_CELL={kind}", "-c", source, "-o", target]
        subprocess.run(compiled, check=True, capture_output=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cells = list(pool.map(cell, kinds()))
    sources = [str(ROOT / f"tests/cpp/{driver}.cpp"), *map(str, CORE), *cells]
    subprocess.run([*command, *sources, "-o", str(out)], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def avx2_bits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the driver bits prints here."""
    out = tmp_path_factory.mktemp("avx2") / "bits"
    driver = build("bits", "g++", "avx2", ["-mavx2", "-mfma"], out)
    return subprocess.run([driver], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def neon(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a driver for NEON."""
    tools = ("g++", "aarch64-linux-gnu-g++", "qemu-aarch64")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing or os.uname().machine != "x86_64":
        pytest.skip(f"needs an x86-64 machine and {', '.join(missing) or 'nothing else'}")
    folder = tmp_path_factory.mktemp("neon")
    return lambda driver: build(driver, "aarch64-linux-gnu-g++", "neon", [], folder / driver)


@pytest.mark.slow
def test_neon_gives_the_bits_of_avx2(neon: Callable[[str], Path], avx2_bits: str) -> None:
    done = subprocess.run(
        ["qemu-aarch64", neon("bits")], check=True, capture_output=True, text=True
    )
    assert len(avx2_bits.splitlines()) == 4 + 40 * len(kinds())  # activations, losses; problems
    assert done.stdout == avx2_bits


@pytest.mark.slow
def test_neon_gives_the_bits_of_the_twin(neon: Callable[[str], Path]) -> None:
    done = subprocess.run(
        ["qemu-aarch64", neon("fuzz"), "0", "2000"], capture_output=True, text=True
    )
    assert done.stdout == "2000 cases, the same bits: neon\n"


AVX512 = "-mavx2 -mfma -mavx512f -mavx512dq -mavx512bw -mavx512vl -mprefer-vector-width=512"
ISOLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin")
LDLINUX = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
BUSYBOX = Path("/bin/busybox")
BOCHS = """
cpu: model=corei7_skylake_x, ips=100000000
megs: 512
display_library: term
speaker: enabled=0
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial
log: log
"""
# Bochs 2.7 misstates the size of a compacted XSAVE area, for which Linux turns AVX off: no
# compaction.
ISOLINUX_CFG = """
default linux
label linux
kernel vmlinuz
append initrd=initrd console=ttyS0 loglevel=1 clearcpuid=xsavec,xsaves
"""
INIT = """#!/bin/busybox sh
export OMP_WAIT_POLICY=passive
/bits
echo bits: $?
/fuzz 0 2000
echo fuzz: $?
/bin/busybox sleep 3  # the serial port sends what it has
/bin/busybox poweroff -f
"""


@pytest.fixture(scope="module")
def avx512(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a Linux under Bochs writes to its serial port when its init runs both drivers."""
    kernel = Path(os.environ.get("RNNKERN_LINUX", "RNNKERN_LINUX"))
    tools = [tool for tool in ("bochs", "script", "genisoimage", "cpio") if not shutil.which(tool)]
    missing = tools + [str(f) for f in (kernel, ISOLINUX, LDLINUX, BUSYBOX) if not f.is_file()]
    if missing or os.uname().machine != "x86_64":
        pytest.skip(f"needs an x86-64 machine and {', '.join(missing) or 'nothing else'}")
    folder = tmp_path_factory.mktemp("avx512")
    root, iso = folder / "root", folder / "iso"
    (root / "bin").mkdir(parents=True)
    iso.mkdir()
    for driver in ("bits", "fuzz"):
        build(driver, "g++", "avx512", AVX512.split(), root / driver)
    shutil.copy(BUSYBOX, root / "bin")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    shutil.copy(kernel, iso / "vmlinuz")
    shutil.copy(ISOLINUX, iso)
    shutil.copy(LDLINUX, iso)
    (iso / "isolinux.cfg").write_text(ISOLINUX_CFG)
    (folder / "bochsrc").write_text(BOCHS)
    (folder / "debugger").write_text("continue\n")  # Debian's Bochs starts in its debugger

    def run(command: str, where: Path) -> None:
        subprocess.run(command, shell=True, cwd=where, check=True)

    run("find . | cpio -o -H newc | gzip >../iso/initrd", root)
    boot = "-b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table"
    run(f"genisoimage -quiet -o boot.iso {boot} iso", folder)
    # script gives Bochs the terminal that its display needs; timeout ends a Linux that hangs.
    bochs = "timeout 3600 script -c 'bochs -q -f bochsrc -rc debugger' /dev/null"
    run(f"TERM=linux {bochs} </dev/null >screen", folder)
    return (folder / "serial").read_text()


@pytest.mark.slow
def test_avx512_gives_the_bits_of_avx2(avx512: str, avx2_bits: str) -> None:
    assert "set: avx512\n" in avx512
    assert len(avx2_bits.splitlines()) == 4 + 40 * len(kinds())  # activations, losses; problems
    assert f"{avx2_bits}bits: 0\n" in avx512


@pytest.mark.slow
def test_avx512_gives_the_bits_of_the_twin(avx512: str) -> None:
    assert "2000 cases, the same bits: avx512\nfuzz: 0\n" in avx512
