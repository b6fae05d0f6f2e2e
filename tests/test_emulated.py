"""The same bits on an instruction set that this machine lacks, under emulation.

Slow (it compiles the core three times and boots Linux in an emulator): ``pytest -m slow
tests/test_emulated.py``. RNNKERN_RELEASED names a folder where AVX2's drivers are already built.
With RNNKERN_FEW, NEON computes a quarter of the problems of ``bits``, none of ``fuzz``. It needs
Debian's packages

- for NEON: g++-aarch64-linux-gnu, qemu-user;
- for AVX-512: bochs, bochs-term, isolinux, syslinux-common, genisoimage, cpio, busybox-static, and
  a Linux to boot, whose path is in RNNKERN_LINUX: Debian's ``boot/vmlinuz-*``, from its package
  linux-image-*-amd64 (``dpkg-deb -x`` unpacks it without installing it).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from plan import kinds

ROOT = Path(__file__).parents[1]
FEW = "RNNKERN_FEW" in os.environ
# The emulated system has no libraries. FindOpenMP would name the shared one by its path.
STATIC = ("-DCMAKE_EXE_LINKER_FLAGS=-static", "-DOpenMP_gomp_LIBRARY:STRING=-lgomp")


def build(folder: Path, instruction_set: str, drivers: list[str], *options: str) -> Path:
    """The folder of drivers of tests/cpp, compiled for one instruction set."""
    sets = f"-DRNNKERN_INSTRUCTION_SETS={instruction_set}"
    for arguments in (
        ("--preset", "drivers", "-B", folder, sets, *options),
        ("--build", folder, "--parallel", os.cpu_count() or 1, "--target", *drivers),
    ):
        command = ["cmake", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "tests" / "cpp"


@pytest.fixture(scope="module")
def avx2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the drivers for AVX2."""
    if "RNNKERN_RELEASED" in os.environ:
        return Path(os.environ["RNNKERN_RELEASED"]) / "tests" / "cpp"
    return build(tmp_path_factory.mktemp("avx2"), "avx2", ["bits"])


@pytest.fixture(scope="module")
def avx2_bits(avx2: Path) -> str:
    """What the driver bits prints here."""
    return bits_of([avx2 / "bits"], "avx2")


def bits_of(command: list[str | Path], instruction_set: str, *few: str) -> str:
    command = [*command, instruction_set, *few]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def neon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the drivers for NEON."""
    tools = ("cmake", "g++", "aarch64-linux-gnu-g++", "qemu-aarch64")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing or os.uname().machine != "x86_64":
        pytest.skip(f"needs an x86-64 machine and {', '.join(missing) or 'nothing else'}")
    cross = ("SYSTEM_NAME=Linux", "SYSTEM_PROCESSOR=aarch64", "CXX_COMPILER=aarch64-linux-gnu-g++")
    options = [*(f"-DCMAKE_{option}" for option in cross), *STATIC]
    drivers = ["bits"] if FEW else ["bits", "fuzz"]
    return build(tmp_path_factory.mktemp("neon"), "neon", drivers, *options)


@pytest.mark.slow
def test_neon_gives_the_bits_of_avx2(neon: Path, avx2: Path) -> None:
    few = ["few"] if FEW else []
    expected = bits_of([avx2 / "bits"], "avx2", *few)
    problems = (14 if few else 56) * len(kinds())
    assert len(expected.splitlines()) == 4 + problems  # activations, losses
    assert bits_of(["qemu-aarch64", neon / "bits"], "neon", *few) == expected


@pytest.mark.slow
@pytest.mark.skipif(FEW, reason="few problems: the naive reference takes long to compile")
def test_neon_gives_the_bits_of_the_twin(neon: Path) -> None:
    command = ["qemu-aarch64", neon / "fuzz", "0", "2000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "2000 cases, the same bits: neon\n"


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
    names = ["bits", "fuzz"]
    drivers = build(folder / "drivers", "avx512", names, *STATIC)
    for name in names:
        shutil.copy(drivers / name, root)
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
    assert len(avx2_bits.splitlines()) == 4 + 56 * len(kinds())  # activations, losses; problems
    assert f"{avx2_bits}bits: 0\n" in avx512


@pytest.mark.slow
def test_avx512_gives_the_bits_of_the_twin(avx512: str) -> None:
    assert "2000 cases, the same bits: avx512\nfuzz: 0\n" in avx512
