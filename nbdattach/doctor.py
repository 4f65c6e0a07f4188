# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds problems of this machine, each with its remedy as a command. Changes nothing, and opens no device."""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Iterator

from nbdattach.attached import state
from nbdattach.attached.status import Status, status_of
from nbdattach.backends import choice
from nbdattach.connection import kernel_socket
from nbdattach.device import Device
from nbdattach.errors import KernelRefused, NbdattachError, NotAttached
from nbdattach.host import copies, lvm, procfs, selinux, spawn, systemd, udev
from nbdattach.immutable import immutable
from nbdattach.kernel import driver, sysfs
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor import control, launch
from nbdattach.text import plain

# A healthy monitor answers at once. NETLINK_SECONDS allows for importing pyroute2 on a slow machine.
MONITOR_SECONDS = 5
NETLINK_SECONDS = 30
# In seconds: in practice without end, and small enough for the kernel's counter.
WEEK = 7 * 24 * 3600

_INSTALL_RULES = (
    f"in a checkout: install -D -m 644 systemd/{udev.RULES} -t /usr/lib/udev/rules.d; "
    "install -D -m 755 systemd/nbdattach-tag -t /usr/lib/udev; udevadm control --reload"
)


@immutable
class Finding:
    """The result of one check. `stands_in_the_way` is False if all is well, or if it is only advice.

    Advice has a remedy; a good result has none.
    """

    subject: str
    says: str
    stands_in_the_way: bool = False
    remedy: str = ""


def examine() -> list[Finding]:
    """All findings, in the order in which a user should mend them."""
    driver.refuse_other_systems()
    found = [_permission(), _driver()]
    if sysfs.driver_loaded():
        found += [_nodes(), _partitions(), *_devices()]
    found += [_netlink(), *_buffers(), *_monitor(), _udev(), *_udev_rules(), *_lvm(), *_selinux(), _tls()]
    return found


def _permission() -> Finding:
    if not procfs.is_root():
        return Finding("permission", "not root, so nbdattach cannot attach or detach", True, "sudo nbdattach ...")
    if not procfs.may_administer():
        remedy = "start the container with the capability: docker run --cap-add SYS_ADMIN, or podman run --privileged"
        return Finding("permission", "root without CAP_SYS_ADMIN, so nbdattach cannot attach or detach", True, remedy)
    return Finding("permission", "running as root")


def _driver() -> Finding:
    if sysfs.driver_loaded():
        return Finding("driver", f"loaded, {len(sysfs.devices())} devices")
    try:
        known = driver.modprobe("--dry-run", "nbd")
        if known.returncode == 0:
            return Finding("driver", "not loaded yet; connect loads it")
        reason = driver.why_not(known.stderr)
    except KernelRefused as refused:
        reason = refused
    return Finding("driver", reason.cause, True, reason.hint)


def _nodes() -> Finding:
    devices = sysfs.devices()
    missing = [device for device in devices if not _is_block_device(device.path)]
    if missing:
        what = "is not a block device" if len(missing) == 1 else "are not block devices"
        return Finding(
            "nodes",
            f"{_names(missing)} {what}, although the driver is loaded",
            True,
            "mount -t devtmpfs devtmpfs /dev, or pass the devices into this container",
        )
    if not devices:  # nbds_max=0
        return Finding("nodes", "no devices yet; netlink makes them when they are needed")
    return Finding("nodes", f"{devices[0].path} is a block device")


def _is_block_device(path: str) -> bool:
    """Only reads the node's type, because to open a dead device means to wait for it."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def _names(devices: list[Device]) -> str:
    """The first few of them."""
    shown = ", ".join(device.path for device in devices[:3])
    return shown if len(devices) <= 3 else f"{shown} and {len(devices) - 3} more"


def _partitions() -> Finding:
    most = sysfs.max_part()
    if most == 0:  # then their device numbers are not beside that of the device; tried on 6.1, 6.12 and 7.2
        return Finding("partitions", "found, although the driver was loaded with max_part=0")
    return Finding("partitions", f"up to {most or 'an unknown number of'} for each device")


def _devices() -> Iterator[Finding]:
    for device in sysfs.devices():
        pid = Kernel(device).pid
        try:
            status = status_of(device)
        except NotAttached:
            yield from _left_behind(device)
            yield from _write_zeroes(device)
        else:
            yield from _wedged(device, status, pid)
            yield from _timeout(device, status)


def _left_behind(device: Device) -> Iterator[Finding]:
    kernel = Kernel(device)
    if kernel.size and not kernel.attached:
        yield Finding(device.path, f"{kernel.size} bytes, but nothing is attached", True, _detach(device))


def _detach(device: Device) -> str:
    return f"stop the programs that use it, then: nbdattach disconnect {device.path}"


def _wedged(device: Device, status: Status, pid: int | None) -> Iterator[Finding]:
    """Reports an attachment that is not served any more, or is not served now."""
    remedy = _detach(device)
    if status.has_ended and status.trouble:
        yield Finding(device.path, f"lost since {status.trouble['since']}: {status.trouble['error']}", True, remedy)
    elif status.trouble:
        yield _away(status, status.trouble)
    elif status.state == "lost":
        yield Finding(device.path, f"lost: no process serves it any more (it was process {pid})", True, remedy)


def _away(status: Status, trouble: dict[str, str | None]) -> Finding:
    """By netlink, an attachment without a connection is not broken: it works again when the server is back."""
    return Finding(
        status.device,
        f"{status.state} since {trouble['since']}: {plain(trouble['error'] or 'trying')}",
        remedy=f"start the server, or use another one: nbdattach reconnect {status.device} TARGET",
    )


def _timeout(device: Device, status: Status) -> Iterator[Finding]:
    """Reports the timeout of a device that another program attached. Only root can tell it from our own."""
    kernel = Kernel(device)
    if not procfs.is_root() or not status.is_foreign or status.has_ended:
        return
    seconds, gives_up = kernel.io_timeout, kernel.gives_up
    if gives_up is not False and 0 < seconds < WEEK:
        doubt = "" if gives_up else "; or an earlier attachment left this timeout: only debugfs can show which"
        yield Finding(
            device.path,
            f"attached by another program, and gives up a server that needs {seconds:g} s for an answer{doubt}",
            remedy=f"echo {WEEK * 1000} >/sys/block/{device.name}/queue/io_timeout",
        )


def _write_zeroes(device: Device) -> Iterator[Finding]:
    """Reports a setting left by another program: Linux 6.12 to 7.2 cannot switch it off (nbd.c, __nbd_set_size)."""
    kernel = Kernel(device)
    if kernel.sends_write_zeroes and not kernel.attached:
        # The driver cannot be unloaded while it serves a device. Without DEVICE, connect takes another one by itself.
        in_use = any(Kernel(other).attached for other in sysfs.devices())
        remedy = "nbdattach connect TARGET" if in_use else "modprobe -r nbd; modprobe nbd"
        sends = "free, but another program has switched NBD_CMD_WRITE_ZEROES on"
        yield Finding(device.path, f"{sends}; connect refuses servers that do not support it there", remedy=remedy)


def _netlink() -> Finding:
    install = choice.how_to_install()
    if importlib.util.find_spec("pyroute2") is None:
        return Finding("netlink", "pyroute2 is not installed, so a lost connection is not made again", remedy=install)
    if not sysfs.driver_loaded():
        return Finding("netlink", "pyroute2 is installed")
    # If a netlink command hangs, as the driver's can, all commands to all families wait for it.
    answer = copies.answer_within(NETLINK_SECONDS, _why_no_netlink)
    if answer is None:
        says = "the kernel does not answer, because another netlink command hangs"
        return Finding("netlink", says, True, "dmesg usually shows which; then: reboot")
    if not answer:
        return Finding("netlink", "pyroute2 fails, so a lost connection is not made again", remedy=install)
    if answer == "usable":
        return Finding("netlink", answer)
    # connect then uses ioctl; only the host's network namespace sees the family (nbd.c: no netnsok).
    remedy = "run nbdattach in the network namespace of the host: docker run --network host"
    return Finding("netlink", f"{answer}, so a lost connection is not made again", remedy=remedy)


def _why_no_netlink() -> str:
    """Raises any error if the monitor cannot use pyroute2."""
    importlib.import_module("nbdattach.kernel.dead_links")
    missing = choice.why_no_netlink()
    return missing.cause if missing else "usable"


def _buffers() -> Iterator[Finding]:
    """Reports send buffers if root may not enlarge them, as in a container."""
    if procfs.is_root() and not kernel_socket.can_make_room():
        says = "send buffers stay small without CAP_NET_ADMIN: see LIMITS in nbdattach(8) about programs with signals"
        yield Finding("buffers", says, remedy="start the container with the capability: docker run --cap-add NET_ADMIN")


def _monitor() -> Iterator[Finding]:
    """Checks the monitor only if an attachment relies on it: otherwise connect starts it when it is needed."""
    relying = [device for device in sysfs.devices() if _relies_on_monitor(state.load(device))]
    if not relying:
        return
    try:
        package = control.ask(control.Request("package"), MONITOR_SECONDS)
    except control.NoMonitor as error:
        says = f"{error.cause}, so {_names(relying)} will not be reconnected"
        yield Finding("monitor", says, True, _start_of_monitor(error.silent))
    except NbdattachError:  # an older release does not know the request, but it answers
        yield Finding("monitor", "running")
    else:
        yield _running_monitor(package)


def _running_monitor(package: str) -> Finding:
    """connect uses any running monitor, even one of another installation than this command's."""
    pid = control.listener()
    if package == spawn.own_package() or not pid:
        return Finding("monitor", "running")
    says = f"running, but from another nbdattach: {plain(package)}"
    return Finding("monitor", says, remedy=f"kill {pid}; tail --pid={pid} -f /dev/null; nbdattach monitor -b")


def _relies_on_monitor(record: state.Record | None) -> bool:
    """False for ioctl, even if connect was asked to reconnect: there a monitor can mend nothing."""
    return record is not None and record.reconnect and record.backend == "netlink"


def _start_of_monitor(silent: bool) -> str:
    if systemd.in_charge() and systemd.installed(launch.UNIT):
        return f"systemctl {'restart' if silent else 'start'} {launch.UNIT.removesuffix('.service')}"
    hanging = control.listener() if silent else None
    return f"kill -9 {hanging}; nbdattach monitor -b" if hanging else "nbdattach monitor -b"


def _udev() -> Finding:
    if udev.running():
        return Finding("udev", "running")
    remedy = "systemctl start systemd-udevd" if systemd.in_charge() else ""
    return Finding("udev", "not running: devices work, but get no links in /dev/disk", remedy=remedy)


def _udev_rules() -> Iterator[Finding]:
    if udev.running() and not udev.has_our_rules():
        yield Finding(
            "udev rules",
            f"{udev.RULES} is not installed, so devices get no names in /dev/disk/by-nbd",
            remedy=_INSTALL_RULES,
        )


def _lvm() -> Iterator[Finding]:
    try:
        found = lvm.settings()
    except OSError as error:
        says = f"cannot find out if it activates volumes of images: {plain(str(error))}"
        yield Finding("lvm", says, remedy="lvmconfig --validate")
        return
    if found is None:
        return
    kept_out = lvm.why_kept_out(found)
    if kept_out:
        yield Finding("lvm", plain(kept_out))
    elif not udev.running():
        yield Finding("lvm", "activates nothing automatically, because udev is not running")
    else:
        says = (
            "activates the volumes in attached images, which keeps their devices in use; with the remedy LVM ignores "
            "nbd devices, so that vgchange cannot activate volumes on them either"
        )
        yield Finding("lvm", says, remedy=lvm.line_to_keep_out(found))


def _selinux() -> Iterator[Finding]:
    if not selinux.enforcing():
        return
    release = os.uname().release
    allow = "ausearch -m avc -ts boot | grep -E '(tcp|unix_stream)_socket' | audit2allow -M nbd-socket"
    remedy = f"a kernel of {selinux.FIXED_IN}; until then: {allow} && semodule -i nbd-socket.pp"
    denials = selinux.denied()
    if denials:
        says = f"has denied the driver the use of its sockets (result -13, {denials} times), which ends connections"
        yield Finding("selinux", says, True, remedy)
    elif selinux.may_lack_fix(release):
        says = f"enforcing; kernel {release} may lose connections because of it (result -13 in dmesg)"
        yield Finding("selinux", says, remedy=remedy)
    else:
        yield Finding("selinux", "enforcing; it has ended no connection")


def _tls() -> Finding:
    if sysfs.module_loaded("tls"):
        return Finding("tls", "the kernel supports it")
    try:
        known = driver.modprobe("--dry-run", "tls")
    except KernelRefused:
        known = None
    if known and known.returncode == 0:
        return Finding("tls", "the kernel supports it; the module tls is not loaded yet")
    says = "the kernel does not support it (no module tls): a relay encrypts instead, which is slower"
    return Finding("tls", says, remedy="install a kernel with CONFIG_TLS, then: modprobe tls")
