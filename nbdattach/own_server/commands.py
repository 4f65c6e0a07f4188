# SPDX-License-Identifier: GPL-2.0-or-later
"""The command lines of the servers of images: qemu-nbd, and for raw images nbdkit.

Decisions that matter, measured with QEMU 7.2 and nbdkit 1.32:
* QEMU keeps tables of qcow2 and parallels in memory until a flush: if it is killed, the writes that it has acknowledged
  since are lost, all of them, without a word. So if a device goes on after that, it writes them with each request
  (writethrough). The tables of the other formats are written before a request is acknowledged.
* For raw images nbdkit's file plugin takes less than half of qemu-nbd's CPU. It takes no locks; the keeper does
  (`image_lock`).
* TRIM reaches the image unless the user wants otherwise; the servers' own default says yes to it and does nothing.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace

from nbdattach.connect_options import USUAL, ImageOptions
from nbdattach.errors import Malformed
from nbdattach.immutable import immutable
from nbdattach.own_server.child import FIRST_LOCK

# The last byte of incompatible_features, and its bit (docs/interop/qcow2).
_INCOMPATIBLE, _EXTERNAL_DATA = 79, 1 << 2
_WRITES_TABLES_LATE = ("qcow2", "parallels")
# QEMU opens them for writing only if they were closed properly; a check after the server was killed mends that.
_MARKED_WHILE_OPEN = ("parallels",)


# A VHD of another creator has its size in one of two fields; QEMU before 10 takes the wrong one.
_SIZE_OF_VPC = "force_size_calc"


def has_further_files(head: bytes, found: str) -> bool:
    """Whether its header may name an image below it, or another part of it. The formats left out here have none."""
    if found == "qcow2":
        return any(head[8:16]) or bool(head[7] >= 3 and head[_INCOMPATIBLE] & _EXTERNAL_DATA)
    return any(head[8:16]) if found == "qcow" else found in ("qed", "vmdk")


@immutable
class Serving:
    """How to serve the image at `path`, which has that `format`. `size` in bytes, of a part of a raw image.

    `goes_on`: a device goes on after its server was killed. `look`: only to read it, and beside other programs.
    """

    path: str
    format: str
    options: ImageOptions
    read_only: bool
    size: int | None = None
    goes_on: bool = True
    look: bool = False

    def require_possible(self) -> None:
        """Raises `Malformed`."""
        if self._part and self.format != "raw":
            option = "--size" if self.options.offset is None else "--offset"
            cause = f"the image is {self.format}, but only a raw one can be served in part"
            raise Malformed(option, cause, "leave it out")
        if self._part and self.options.snapshot:
            raise Malformed("--snapshot", "cannot be combined with --offset or --size", "leave one out")

    @property
    def _part(self) -> list[str]:
        named = (("offset", self.options.offset), ("size", self.size))
        return [f"{key}={value}" for key, value in named if value is not None]

    @property
    def needs_repair(self) -> bool:
        return self.format in _MARKED_WHILE_OPEN and not self.read_only

    def repair(self, qemu_img: str) -> tuple[str, ...]:
        return (qemu_img, "check", "-q", "-r", "all", "-f", self.format, self.path)

    def new_overlay(self, qemu_img: str, overlay: str) -> tuple[str, ...]:
        """Makes the file that gets all writes."""
        below = self.path
        if self.format == "vpc":
            file = {"driver": "file", "filename": self.path}
            below = "json:" + json.dumps({"driver": "vpc", _SIZE_OF_VPC: "current_size", "file": file})
        return (qemu_img, "create", "-q", "-f", "qcow2", "-b", below, "-F", self.format, overlay)

    def above(self, overlay: str) -> Serving:
        """The same, with that file on top."""
        return replace(self, path=overlay, format="qcow2")

    @property
    def suits_nbdkit(self) -> bool:
        """A raw image as a whole, without wishes that only QEMU can fulfil."""
        return self.format == "raw" and not self._part and replace(self.options, format=None) == USUAL

    def by_nbdkit(self, nbdkit: str) -> tuple[str, ...]:
        """It opens its file for each connection: the one that the keeper has locked, whatever has its name by then."""
        read_only = ("--readonly",) if self.read_only else ()
        path = self.path if self.look else f"/proc/self/fd/{FIRST_LOCK}"
        return (nbdkit, "--foreground", *read_only, "file", f"file={path}")

    def by_qemu_nbd(self, qemu_nbd: str) -> tuple[str, ...]:
        late = self.goes_on and not self.read_only and self.format in _WRITES_TABLES_LATE
        cache = self.options.cache or ("writethrough" if late else "writeback")
        # --persistent: it outlives a client. --shared=0: any number of them; `check` and a reconnect are further ones.
        words = [qemu_nbd, "--persistent", "--shared=0", f"--cache={cache}", f"--discard={self.options.discard}"]
        if self.read_only:
            words.append("--read-only")
        driver = [f"driver={self.format}", *self._part, *[f"{_SIZE_OF_VPC}=current_size"] * (self.format == "vpc")]
        if len(driver) == 1 and not self.look:
            return (*words, f"--format={self.format}", self.path)
        if self.look:
            driver.append("force-share=on")
        kind = "host_device" if stat.S_ISBLK(os.stat(self.path).st_mode) else "file"
        filename = self.path.replace(",", ",,")
        return (*words, "--image-opts", ",".join([*driver, f"file.driver={kind}", f"file.filename={filename}"]))
