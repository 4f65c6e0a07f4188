# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the kernel's state of its nbd devices, and the device numbers, from /sys; sets limits of their queues.

Source of the attributes: drivers/block/nbd.c (pid, backend), Documentation/ABI/stable/sysfs-block.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from nbdattach.device import Device, parse_device
from nbdattach.errors import KernelRefused, Malformed
from nbdattach.immutable import immutable

SYS = "/sys"
SECTOR = 512
# Bytes: the kernel shows an attribute in one page at most.
_MAX_ATTRIBUTE = 1 << 16
# Errors of this process or machine; they do not mean that the kernel has no such attribute.
_OWN_TROUBLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Bytes of a netlink backend identifier, at most.
MAX_IDENTIFIER = 1024
DEFAULT_IO_TIMEOUT = 30.0
# Of a device that does not exist yet (tag_set.queue_depth in nbd.c); bytes of struct nbd_request in linux/nbd.h.
_QUEUE_DEPTH = 128
_REQUEST = 28


def identifier(tag: str) -> str:
    """The tag as the kernel keeps it, for /sys/block/nbdN/backend; a digest of one that does not fit into a page there.

    The driver does not check the length when it prints the identifier (backend_show).
    """
    if len(tag.encode(errors="surrogateescape")) <= MAX_IDENTIFIER:
        return tag
    import hashlib  # loads OpenSSL

    return f"sha256:{hashlib.sha256(tag.encode(errors='surrogateescape')).hexdigest()}"


def driver_loaded() -> bool:
    return os.path.isdir(f"{SYS}/module/nbd") or exists(Device(0))


def module_loaded(name: str) -> bool:
    """Whether /sys shows that module; it need not show one that is built into the kernel."""
    return os.path.isdir(f"{SYS}/module/{name}")


def tls_loaded() -> bool:
    return os.path.isdir(f"{SYS}/module/tls")


def driver_instance() -> int:
    """A number that changes if the module is unloaded and loaded again; 0 if there is no module."""
    try:
        return os.stat(f"{SYS}/module/nbd").st_ino
    except OSError:
        return 0


def max_part() -> int | None:
    """The module's max_part, None if the module does not show it. Partitions appear even if it is 0."""
    text = _read(f"{SYS}/module/nbd/parameters/max_part")
    return int(text) if text else None


def is_there() -> bool:
    """Whether /sys is mounted; without it we know nothing of any device."""
    return os.path.isdir(f"{SYS}/block")


def not_mounted() -> KernelRefused:
    return KernelRefused(SYS, "not mounted, so devices cannot be examined", "mount -t sysfs sysfs /sys")


def exists(device: Device) -> bool:
    return os.path.isdir(f"{SYS}/block/{device.name}")


def devices() -> list[Device]:
    """All nbd devices that the kernel has, attached or not, in the order of their numbers. Raises `KernelRefused`."""
    try:
        names = os.listdir(f"{SYS}/block")
    except FileNotFoundError:
        raise not_mounted() from None
    found = []
    for name in names:
        if name.startswith("nbd"):
            try:
                found.append(parse_device(name))
            except Malformed:
                continue
    return sorted(found)


def block_name(number: str) -> str | None:
    """The name of the block device or partition of that major:minor."""
    try:
        return os.path.basename(os.readlink(f"{SYS}/dev/block/{number}"))
    except OSError:
        return None


def name_at(number: str) -> str | None:
    """As `block_name`, if the nbd driver made it: nbd0, nbd0p1."""
    name = block_name(number)
    return name if name and name.startswith("nbd") else None


def loops() -> dict[str, str]:
    """Loop devices, with the path of their backing file; the kernel does not count them as holders of that."""
    names = sorted(name for name in _names(f"{SYS}/block") if name.startswith("loop"))
    backings = ((loop, _read(f"{SYS}/block/{loop}/loop/backing_file")) for loop in names)
    return {loop: backing for loop, backing in backings if backing}


def btrfs_devices() -> list[set[str]]:
    """Names of the block devices of each btrfs that the kernel has open."""
    place = f"{SYS}/fs/btrfs"
    return [set(_names(f"{place}/{uuid}/devices")) for uuid in _names(place)]


@immutable
class Block:
    """Any block device or partition, by its name in /sys/class/block. Each property is read when it is asked for."""

    name: str

    @property
    def number(self) -> str | None:
        """major:minor."""
        return _read(f"{self._path}/dev")

    @property
    def partitions(self) -> list[str]:
        """Names as in /dev: nbd0p1, ..."""
        names = (name for name in _names(self._path) if name.startswith(self.name))
        return sorted(name for name in names if os.path.exists(f"{self._path}/{name}/partition"))

    @property
    def holders(self) -> list[str]:
        """Block devices built on it: dm-0, md0."""
        return sorted(_names(f"{self._path}/holders"))

    @property
    def mapping(self) -> tuple[str, str] | None:
        """Name and uuid that the device mapper has for it; None if it is no mapping."""
        name = _read(f"{self._path}/dm/name")
        return (name, _read(f"{self._path}/dm/uuid") or "") if name else None

    @property
    def _path(self) -> str:
        return f"{SYS}/class/block/{self.name}"


# In the file `stat`, fields of reads, writes, discards and flushes: how many were done, and the milliseconds they took.
# Old kernels have fewer fields.
_DONE, _TOOK = (0, 4, 11, 15), (3, 7, 14, 16)
_READ, _WRITTEN, _DISCARDED, _INFLIGHT, _FLUSHES = 2, 6, 13, 8, 15


@immutable
class Stat:
    """Bytes moved since the device was made, and requests under way (Documentation/block/stat.rst).

    `inflight` counts all that are not done: also those that wait for a connection, and flushes (since Linux 6.12).
    `requests` are those done, of any kind; `waited` is the time that they took, in seconds, added up.
    """

    read: int
    written: int
    inflight: int
    requests: int = 0
    waited: float = 0.0


@immutable
class Kernel:
    """The kernel's state of one device. Each property is read when it is asked for."""

    device: Device

    @property
    def attached(self) -> bool:
        """From NBD_DO_IT or its netlink twin until the last opener has closed the device."""
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        """The process that attached it: the ioctl worker, or the sender of the netlink message."""
        text = self._read("pid")
        return int(text) if text else None

    @property
    def backend(self) -> str | None:
        """The netlink backend identifier; None if none was given."""
        return self._read("backend")

    @property
    def by_netlink(self) -> bool:
        """Attached through the netlink interface: the attribute is there even if no identifier was given."""
        return os.path.exists(f"{self._path}/backend")

    @property
    def size(self) -> int:
        """In bytes."""
        return int(self._read("size") or 0) * SECTOR

    @property
    def read_only(self) -> bool:
        return self._read("ro") == "1"

    @property
    def block_size(self) -> int:
        return int(self._read("queue/logical_block_size") or SECTOR)

    @property
    def max_sectors_kb(self) -> int:
        """The largest request, in KiB."""
        return int(self._read("queue/max_sectors_kb") or 0)

    def most_in_flight(self, max_sectors_kb: int) -> int:
        """Bytes of all requests that the driver may have at once: as many as possible, each of the largest size."""
        requests = int(self._read("queue/nr_requests") or _QUEUE_DEPTH)
        return requests * (max_sectors_kb * 1024 + _REQUEST)

    @property
    def write_back(self) -> bool:
        """Whether the kernel assumes that the server has a write cache; otherwise it never sends a flush."""
        return self._read("queue/write_cache") == "write back"

    @property
    def sends_fua(self) -> bool:
        return self._read("queue/fua") == "1"

    @property
    def connections(self) -> int:
        """Their number: the driver makes one hardware queue for each connection."""
        try:
            return len(os.listdir(f"{self._path}/mq"))
        except OSError:
            return 0

    @property
    def partitions(self) -> list[str]:
        """Names as in /dev: nbd0p1, ..."""
        return Block(self.device.name).partitions

    @property
    def paths(self) -> list[str]:
        """Nodes of the device and of its partitions."""
        return [self.device.path, *(f"/dev/{name}" for name in self.partitions)]

    @property
    def stack(self) -> list[str]:
        """Nodes of the device, of its partitions, and of all devices that are built on them."""
        names = [self.device.name]
        for name in names:  # which grows meanwhile
            block = Block(name)
            names += [one for one in (*block.partitions, *block.holders) if one not in names]
        return [f"/dev/{name}" for name in names]

    @property
    def sends_write_zeroes(self) -> bool:
        """Once an attachment has switched it on, the driver cannot switch it off again (6.12, nbd.c __nbd_set_size)."""
        return int(self._read("queue/write_zeroes_max_bytes") or 0) > 0

    @property
    def completed(self) -> int:
        """Requests done since the device was made: reads, writes, discards, flushes (Documentation/block/stat.rst)."""
        return _sum_of(self._counters, _DONE)

    @property
    def stat(self) -> Stat | None:
        """All counters at one moment. None if the device does not exist."""
        return _stat(self._path)

    @property
    def written(self) -> int:
        """Sectors, since the device was made (Documentation/block/stat.rst)."""
        return _sum_of(self._counters, [_WRITTEN])

    @property
    def altered(self) -> int:
        """Sectors written or discarded since the device was made."""
        return _sum_of(self._counters, [_WRITTEN, _DISCARDED])

    @property
    def flushes(self) -> int:
        """Sent since the device was made."""
        return _sum_of(self._counters, [_FLUSHES])

    @property
    def _counters(self) -> list[int]:
        return _counters(self._path)

    @property
    def counts_requests(self) -> bool:
        """Whether these are kept up to date: `written`, `altered`, `flushes`, `completed`, `inflight`, `pending`."""
        return self._read("queue/iostats") != "0"

    @property
    def inflight(self) -> int:
        """Requests that the driver works on, reads and writes. No flush, and none that waits for a new connection."""
        return sum(map(int, (self._read("inflight") or "").split()))

    @property
    def pending(self) -> int:
        """0 if every request is done: a kernel that freezes the queue waits for that. An unknown count counts as 1.

        Linux 6.12 counts requests to a partition at the partition only; later kernels count them at the device, too.
        """
        stats = [_stat(f"{self._path}{part}") for part in ("", *(f"/{name}" for name in self.partitions))]
        return self.inflight + sum(stat.inflight if stat else 1 for stat in stats)

    @property
    def under_way(self) -> int:
        """Requests that are not done, those that wait for a new connection included.

        The largest count, because a request to a partition may be counted at the device, too (see `pending`).
        """
        parts = [_stat(f"{self._path}/{name}") for name in self.partitions]
        there = self.stat
        return max(self.inflight, there.inflight if there else 0, sum(part.inflight for part in parts if part))

    @property
    def io_timeout(self) -> float:
        """Seconds after which the driver checks a request that is not done. Outlives the attachment."""
        return int(self._read("queue/io_timeout") or 0) / 1000

    @property
    def gives_up(self) -> bool | None:
        """Whether the driver gives up a request's connection after that time; None if we cannot know.

        With several connections always, with one only if the attaching program has set a time-out (nbd.c,
        nbd_xmit_timeout), which debugfs shows. Without debugfs, a time other than the default only shows that some
        program set it once.
        """
        if self.connections > 1:
            return True
        told = _read(f"{SYS}/kernel/debug/nbd/{self.device.name}/timeout")
        if told:
            return told != "0"
        return None if self.io_timeout != DEFAULT_IO_TIMEOUT else False

    def set_queue(self, attribute: str, value: int | str) -> None:
        """Sets a limit of the queue, such as max_sectors_kb. Raises OSError.

        Since Linux 6.12 the kernel waits for all requests in flight first, so a value that is right stays untouched.
        """
        if self._read(f"queue/{attribute}") == str(value):
            return
        with open(f"{self._path}/queue/{attribute}", "w") as file:
            file.write(str(value))

    @property
    def schedulers(self) -> list[str]:
        """Names of I/O schedulers that the kernel has now; it may load others when they are asked for."""
        return (self._read("queue/scheduler") or "").replace("[", "").replace("]", "").split()

    @property
    def scheduler(self) -> str:
        """The name of the one in use; empty if the kernel does not say."""
        return (self._read("queue/scheduler") or "").partition("[")[2].partition("]")[0]

    def set_scheduler(self, name: str) -> None:
        """Raises OSError: EINVAL if the kernel does not have it. The kernel waits for all requests in flight first."""
        with open(f"{self._path}/queue/scheduler", "w") as file:
            file.write(name)

    @property
    def _path(self) -> str:
        return f"{SYS}/block/{self.device.name}"

    def _read(self, attribute: str) -> str | None:
        return _read(f"{self._path}/{attribute}")


def _stat(folder: str) -> Stat | None:
    fields = _counters(folder)
    if len(fields) <= _INFLIGHT:
        return None
    return Stat(
        read=fields[_READ] * SECTOR,
        written=fields[_WRITTEN] * SECTOR,
        inflight=fields[_INFLIGHT],
        requests=_sum_of(fields, _DONE),
        waited=_sum_of(fields, _TOOK) / 1000,
    )


def _counters(folder: str) -> list[int]:
    """Fields of the file `stat`; none if the device does not exist."""
    return [int(field) for field in (_read(f"{folder}/stat") or "").split()]


def _sum_of(fields: Sequence[int], places: Sequence[int]) -> int:
    return sum(fields[at] for at in places if at < len(fields))


def _read(path: str) -> str | None:
    """The attribute's text; None if there is none, or it goes while we read. Raises the errors of `_OWN_TROUBLE`.

    Three system calls; a file of Python makes three times as many, and `status` reads some thousand attributes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _OWN_TROUBLE:
            raise
        return None
    try:
        return os.read(fd, _MAX_ATTRIBUTE).decode(errors="surrogateescape").strip() or None
    except OSError:
        return None
    finally:
        os.close(fd)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
