#!/usr/bin/env python3
"""Run a command as root in a throw-away guest, on top of this machine's own root file system.

Knows how guests start and end. Must not know nbdattach.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import lzma
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
KERNELS = ("6.1", "6.1-qemu", "6.12")

TIMED_OUT = 124  # as timeout(1)
NO_STATUS = 125

CONSOLE_TAIL = 60
PATIENCE = 5.0  # seconds for QEMU and for the wrapper of UML to obey a signal
ENVIRONMENT = ("CI", "HOME", "LANG", "TERM")

# What the initramfs needs to reach the root: the bus, 9p, and the port that carries the output.
BOOT_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p")


# UML chats on its own stdout, so the channels get descriptors of their own. It makes itself the
# leader of a new session, and its helper processes survive it: they go as a group, however we end.
UML_WRAPPER = """
trap 'kill -s KILL -- "-$uml" "$uml" 2>/dev/null' EXIT
trap 'exit 1' TERM
ulimit -c 0
exec 3<&0 4>&1 5>&2
"$@" </dev/null >&2 &
uml=$!
wait "$uml"
"""


# What systemd and its services say goes to the console, which is outside before the end.
SYSTEMD_LINE = ("systemd.journald.forward_to_console=1", "systemd.show_status=0", "printk.time=1")


class LabError(Exception):
    """The guest cannot be started here."""


@dataclass(frozen=True)
class Job:
    kernel: str
    command: tuple[str, ...]  # empty: a shell on the caller's terminal
    out: Path
    timeout: float
    memory: str
    udev: bool
    environment: tuple[str, ...]
    boot: Path | None  # what is put over the root before systemd boots from it
    tap: str  # name of a tap device of this machine; the guest's eth0 is at its other end

    @property
    def shell(self) -> bool:
        return not self.command

    @property
    def uml(self) -> bool:
        return self.kernel == "6.1"

    @property
    def tty(self) -> str:
        if self.uml:
            return "/dev/ttyS0"
        return "/dev/hvc0" if self.shell else "/dev/vport*p1"


# --- What the guest reads: the control folder


def job_script(job: Job) -> str:
    command = job.command or ("bash", "-i")
    # Here, for a size is forgotten when the terminal is closed.
    terminal = f"stty sane {terminal_size()}\n" if job.shell else ""
    return (
        f"{terminal}cd {shlex.quote(os.getcwd())} || exit 126\n"
        f"exec env -i {shlex.join(guest_environment(job))} {shlex.join(command)}\n"
    )


def guest_environment(job: Job) -> list[str]:
    path = os.environ.get("PATH", "/usr/bin:/bin").split(os.pathsep)
    path += [folder for folder in ("/usr/sbin", "/sbin") if folder not in path]
    kept = [f"{name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ]
    return [f"PATH={':'.join(path)}", *kept, f"LAB_OUT={job.out}", *job.environment]


def settings(job: Job) -> str:
    values = {
        "LAB_KERNEL": "uml" if job.uml else "qemu",
        "LAB_OUT": str(job.out),
        "LAB_CWD": os.getcwd(),
        "LAB_UDEV": "yes" if job.udev else "no",
        "LAB_MODE": "boot" if job.boot else "shell" if job.shell else "job",
        "LAB_TTY": job.tty,
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def terminal_size() -> str:
    size = shutil.get_terminal_size()
    return f"rows {size.lines} cols {size.columns}"


def write_control(job: Job, control: Path) -> None:
    (control / "settings").write_text(settings(job))
    (control / "job").write_text(job_script(job))
    # Copies: the guest's fresh /tmp may hide the originals, and init= takes no spaces.
    for script in ("init", "init-job"):
        shutil.copy(HERE / script, control)
    if job.boot:
        shutil.copytree(job.boot, control / "boot", symlinks=True)


# --- The two kinds of machine


def kernel_line(control: Path) -> list[str]:
    return [f"LAB_CTL={control}", "nbdattach.lab=1"]


def uml_command(job: Job, control: Path) -> list[str]:
    source = "fd:3" if job.shell else "null"
    return [
        *("setpriv", "--pdeathsig", "TERM", "sh", "-c", UML_WRAPPER, "sh"),
        *("linux.uml", f"mem={job.memory}", f"uml_dir={control}", "umid=guest"),
        *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={control}/init"),
        *("con=null", "con0=null,fd:5", "ssl=null", f"ssl0={source},fd:4"),
        *([f"eth0=tuntap,{job.tap}"] if job.tap else []),
        *(SYSTEMD_LINE if job.boot else []),
        *kernel_line(control),
    ]


def qemu_command(job: Job, control: Path) -> list[str]:
    version = kernel_version(job.kernel)
    append = ["console=ttyS0", "panic=-1", "reboot=t", *kernel_line(control)]
    port = "virtconsole" if job.shell else "virtserialport"
    # Not stdio for a job: the end of its input closes the port, and a write then waits for ever.
    channel = "stdio,id=job,signal=off" if job.shell else "file,id=job,path=/dev/stdout"
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("qemu-system-x86_64", *accelerator(), "-smp", "2", "-m", job.memory),
        # Not microvm: one boot in seven hangs there while the kernel sets up its timer.
        *("-M", "q35"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", f"/boot/vmlinuz-{version}", "-initrd", str(write_initramfs(version, control))),
        *("-append", " ".join(append)),
        *("-chardev", f"file,id=console,path={escape(job.out / 'console.log')},append=on"),
        *("-serial", "chardev:console"),
        *share("root", Path("/"), ",readonly=on"),
        *share("out", job.out, ""),
        *("-chardev", channel, "-device", "virtio-serial-pci"),
        *("-device", f"{port},chardev=job"),
    ]


def accelerator() -> tuple[str, ...]:
    # /dev/kvm may exist where stock kernels die on it, so a person has to say that it works.
    if os.environ.get("LAB_KVM") == "1":
        return ("-accel", "kvm", "-cpu", "host")
    return ("-accel", "tcg,thread=multi", "-cpu", "max")


def share(tag: str, folder: Path, options: str) -> tuple[str, ...]:
    source = f"local,id={tag},path={escape(folder)},security_model=none,multidevs=remap{options}"
    return ("-fsdev", source, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}")


def escape(path: Path) -> str:
    return str(path).replace(",", ",,")


def kernel_version(kernel: str) -> str:
    base = kernel.removesuffix("-qemu")
    found = glob.glob(f"/boot/vmlinuz-{base}.*")
    if not found:
        raise LabError(f"no /boot/vmlinuz-{base}.* here (run tests/lab/provision)")
    return max(found, key=version_key).removeprefix("/boot/vmlinuz-")


def version_key(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


# --- The initramfs of a QEMU guest


def write_initramfs(version: str, control: Path) -> Path:
    tree = control / "initramfs"
    for folder in ("bin", "dev", "modules", "proc", "root"):
        (tree / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin")
    shutil.copy(HERE / "initramfs-init", tree / "init")
    (tree / "init").chmod(0o755)
    for number, module in enumerate(boot_modules(version)):
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


def boot_modules(version: str) -> list[Path]:
    if not Path(f"/lib/modules/{version}/modules.dep.bin").exists():
        subprocess.run(["/sbin/depmod", version], check=True)
    show = ["/sbin/modprobe", "--show-depends", "--set-version", version, "--all", *BOOT_MODULES]
    lines = subprocess.run(show, check=True, capture_output=True, text=True).stdout.splitlines()
    files = [line.split()[1] for line in lines if line.startswith("insmod ")]
    return [Path(file) for file in dict.fromkeys(files)]


# --- Running


def run(job: Job, control: Path) -> int:
    status = job.out / "status"
    status.unlink(missing_ok=True)
    console = job.out / "console.log"
    write_control(job, control)
    argv = uml_command(job, control) if job.uml else qemu_command(job, control)
    deadline = time.monotonic() + job.timeout
    with console.open("wb") as log, started(job, argv, log.fileno()) as guest:
        in_time = attend(guest, deadline)
    if status.exists():
        return int(status.read_text())
    return explain(console, job.timeout, in_time)


@contextlib.contextmanager
def started(job: Job, argv: list[str], log: int) -> Iterator[subprocess.Popen[bytes]]:
    guest = subprocess.Popen(
        argv,
        stdin=None if job.shell else subprocess.DEVNULL,
        stdout=None if job.shell else subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )
    try:
        with kept_terminal():
            yield guest
    finally:
        end(guest)


def end(guest: subprocess.Popen[bytes]) -> None:
    guest.terminate()
    try:
        guest.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        guest.kill()
        guest.wait()


@contextlib.contextmanager
def kept_terminal() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def attend(guest: subprocess.Popen[bytes], deadline: float) -> bool:
    """Pass the guest's output on until it ends. False when the time is over."""
    try:
        if guest.stdout is not None and not copy_output(guest, guest.stdout.fileno(), deadline):
            return False
        guest.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def copy_output(guest: subprocess.Popen[bytes], source: int, deadline: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(min(left, 0.2)):
                # Helper processes of UML may hold the pipe after its end.
                if guest.poll() is not None:
                    return True
                continue
            data = os.read(source, 65536)
            if not data:
                return True
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    return False


def explain(console: Path, timeout: float, in_time: bool) -> int:
    reason = "ended without a status" if in_time else f"did not end within {timeout:g} s"
    lines = console.read_text(errors="replace").splitlines()[-CONSOLE_TAIL:]
    print(f"lab: the guest {reason}; the end of its console:", *lines, sep="\n", file=sys.stderr)
    return NO_STATUS if in_time else TIMED_OUT


# --- The command line


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="guest.py", description=__doc__)
    parser.add_argument("--kernel", choices=KERNELS, default="6.1", help="6.1 is User-mode Linux")
    parser.add_argument("--timeout", type=float, default=600, metavar="SEC")
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--udev", action="store_true", help="start systemd-udevd first")
    parser.add_argument("--out", type=Path, metavar="DIR", help="writable in the guest, with its logs")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--shell", action="store_true", help="an interactive bash")
    parser.add_argument("--boot", type=Path, metavar="DIR", help="boot systemd, with the files of DIR in the root")
    parser.add_argument("--tap", default="", metavar="NAME", help="a tap device to which the guest's eth0 leads")
    parser.add_argument("command", nargs="*", metavar="-- COMMAND")
    options = parser.parse_args(arguments)
    if options.shell == bool(options.command):
        parser.error("either --shell or -- COMMAND")
    if (options.boot or options.tap) and (options.kernel != "6.1" or options.shell):
        parser.error("--boot and --tap go with kernel 6.1 and a COMMAND")
    return options


def make_job(options: argparse.Namespace, out: Path) -> Job:
    return Job(
        kernel=options.kernel,
        command=tuple(options.command),
        out=out,
        timeout=options.timeout,
        memory=options.memory,
        udev=options.udev,
        environment=tuple(options.env),
        boot=options.boot,
        tap=options.tap,
    )


def stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    options = parse(sys.argv[1:])
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        control = Path(folder, "control")
        out = (options.out or Path(folder, "out")).resolve()
        control.mkdir()
        out.mkdir(parents=True, exist_ok=True)
        try:
            return run(make_job(options, out), control)
        except LabError as error:
            print(f"lab: {error}", file=sys.stderr)
            return NO_STATUS


if __name__ == "__main__":
    sys.exit(main())
