# SPDX-License-Identifier: GPL-2.0-or-later
"""The task of a guest, and the control folder in which it reads the task. Must not know how a guest is started."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
UML = ("6.1", "6.12", "7.2")
QEMU = ("6.1-qemu", "6.12-qemu", "7.3-qemu")
KERNELS = UML + QEMU

ENVIRONMENT = ("CI", "HOME", "LANG", "TERM")


class LabError(Exception):
    """The guest cannot be started here."""


@dataclass(frozen=True)
class Job:
    kernel: str
    command: tuple[str, ...]  # empty: a shell on the caller's terminal
    out: Path
    timeout: float  # seconds
    memory: str
    udev: bool
    environment: tuple[str, ...]
    root: Path  # the root file system of this machine, or that of another release
    boot: Path | None  # files put over the root before systemd boots from it
    tap: str  # name of a tap device of this machine; the guest's vec0 is at its other end

    @property
    def shell(self) -> bool:
        return not self.command

    @property
    def uml(self) -> bool:
        return self.kernel in UML

    @property
    def foreign(self) -> bool:
        """The root is another one than this machine's, so the tree must be carried in."""
        return self.root != Path("/")

    @property
    def tty(self) -> str:
        if self.uml:
            return "/dev/ttyS0"
        return "/dev/hvc0" if self.shell else "/dev/vport*p1"

    def inside(self, path: Path) -> Path:
        """The name that a file below the root has in the guest."""
        return Path("/", path.relative_to(self.root))


def write_control(job: Job, control: Path, kernel: Path) -> None:
    """Writes all that the guest reads; `kernel` is the folder of its kernel."""
    (control / "settings").write_text(_settings(job, kernel))
    (control / "job").write_text(_job_script(job))
    # Copies: the guest's fresh /tmp may hide the originals, and init= takes no spaces.
    for script in ("init", "init-job"):
        shutil.copy(HERE / script, control)
    if job.boot:
        shutil.copytree(job.boot, control / "boot", symlinks=True)


def kernel_line(job: Job, control: Path) -> list[str]:
    """The words on the kernel's command line that lead to the control folder.

    Without printk.devkmsg, the kernel drops lines of a program that writes more than ten in five seconds, and tests
    look for lines of the monitor.
    """
    return [f"LAB_CTL={job.inside(control)}", "nbdattach.lab=1", "printk.devkmsg=on"]


def _settings(job: Job, kernel: Path) -> str:
    values = {
        "LAB_KERNEL": "uml" if job.uml else "qemu",
        "LAB_KERNEL_DIR": str(kernel),
        "LAB_OUT": str(job.out),
        "LAB_CWD": os.getcwd(),
        "LAB_TREE": str(TREE) if job.foreign else "",
        "LAB_UDEV": "yes" if job.udev else "no",
        "LAB_MODE": "boot" if job.boot else "shell" if job.shell else "job",
        "LAB_TTY": job.tty,
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _job_script(job: Job) -> str:
    command = job.command or ("bash", "-i")
    # Here, because a size is forgotten when the terminal is closed.
    terminal = f"stty sane {_terminal_size()}\n" if job.shell else ""
    return (
        f"{terminal}cd {shlex.quote(os.getcwd())} || exit 126\n"
        f"exec env -i {shlex.join(_guest_environment(job))} {shlex.join(command)}\n"
    )


def _guest_environment(job: Job) -> list[str]:
    folders = os.environ.get("PATH", "/usr/bin:/bin").split(os.pathsep)
    folders += [folder for folder in ("/usr/sbin", "/sbin") if folder not in folders]
    if job.foreign:
        folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    kept = [f"{name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ]
    return [f"PATH={':'.join(folders)}", *kept, f"LAB_OUT={job.out}", *job.environment]


def _terminal_size() -> str:
    size = shutil.get_terminal_size()
    return f"rows {size.lines} cols {size.columns}"
