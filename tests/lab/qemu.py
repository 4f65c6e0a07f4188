# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of QEMU with a stock kernel: two CPUs, debugfs, an initramfs. Slow unless /dev/kvm works."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from pathlib import Path

from job import HERE, Job, kernel_line
from kernels import kernel_version

# The modules with which the initramfs reaches the root: the bus, 9p, and the port that carries the output.
BOOT_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p")


def command(job: Job, control: Path, kernel: Path) -> list[str]:
    append = ["console=ttyS0", "panic=-1", "reboot=t", *kernel_line(job, control)]
    port = "virtconsole" if job.shell else "virtserialport"
    # Not stdio for a job: the end of its input closes the port, and a write then waits for ever.
    channel = "stdio,id=job,signal=off" if job.shell else "file,id=job,path=/dev/stdout"
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("qemu-system-x86_64", *accelerator(), "-smp", "2", "-m", job.memory),
        # Not microvm: one boot in seven hangs there while the kernel sets up its timer.
        *("-M", "q35"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(kernel / "vmlinuz"), "-initrd", str(write_initramfs(kernel, control))),
        *("-append", " ".join(append)),
        *("-chardev", f"file,id=console,path={escape(job.out / 'console.log')},append=on"),
        *("-serial", "chardev:console"),
        *share("root", job.root, ",readonly=on"),
        *share("out", job.out, ""),
        *("-chardev", channel, "-device", "virtio-serial-pci"),
        *("-device", f"{port},chardev=job"),
    ]


def accelerator() -> tuple[str, ...]:
    # /dev/kvm may exist although stock kernels die on it, so a user has to confirm that it works.
    if os.environ.get("LAB_KVM") == "1":
        return ("-accel", "kvm", "-cpu", "host")
    return ("-accel", "tcg,thread=multi", "-cpu", "max")


def share(tag: str, folder: Path, options: str) -> tuple[str, ...]:
    source = f"local,id={tag},path={escape(folder)},security_model=none,multidevs=remap{options}"
    return ("-fsdev", source, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}")


def escape(path: Path) -> str:
    return str(path).replace(",", ",,")


# --- The initramfs of a QEMU guest


def write_initramfs(kernel: Path, control: Path) -> Path:
    tree = control / "initramfs"
    for folder in ("bin", "dev", "modules", "proc", "root"):
        (tree / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin")
    shutil.copy(HERE / "initramfs-init", tree / "init")
    (tree / "init").chmod(0o755)
    for number, module in enumerate(boot_modules(kernel)):
        (tree / "modules" / f"{number:02}-{module.stem}").write_bytes(unpacked(module))
    return pack(tree)


def pack(tree: Path) -> Path:
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    archive = tree.with_suffix(".cpio")
    with archive.open("wb") as target:
        subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc"],
            cwd=tree,
            input=names.encode(),
            stdout=target,
            check=True,
        )
    return archive


def unpacked(module: Path) -> bytes:
    # busybox takes no compressed modules, which 6.12 has.
    return lzma.decompress(module.read_bytes()) if module.suffix == ".xz" else module.read_bytes()


def boot_modules(kernel: Path) -> list[Path]:
    """The files of BOOT_MODULES and their dependencies, in the order in which they are to be loaded."""
    tree = ["--dirname", str(kernel), "--set-version", kernel_version(kernel)]
    show = ["/sbin/modprobe", "--show-depends", *tree, "--all", *BOOT_MODULES]
    lines = subprocess.run(show, check=True, capture_output=True, text=True).stdout.splitlines()
    files = [line.split()[1] for line in lines if line.startswith("insmod ")]
    return [Path(file) for file in dict.fromkeys(files)]
