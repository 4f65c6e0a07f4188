# SPDX-License-Identifier: GPL-2.0-or-later
"""The command lines of the servers of images: qemu-nbd, and for raw images nbdkit.

Decisions that matter, measured with QEMU 7.2 and nbdkit 1.32:
* QEMU keeps tables of qcow2 and parallels in memory until a flush: if it is killed, the writes that it has acknowledged
  since are lost, all of them, without a word. So if a device goes on after that, it writes them with each request
  (writethrough). The tables of the other formats are written before a request is acknowledged.
* For raw images nbdkit's file plugin takes less than half of qemu-nbd's CPU.
* The keeper takes QEMU's locks for all servers (`image_lock`): those of a server end with it, and before the next one
  starts, another program could write the image.
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
        return (qemu_img, "check", "-q", "-r", "all", "--image-opts", self._options("locking=off"))

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
        """It opens the path for each connection; so a new connection is only used if that is still the same file."""
        read_only = ("--readonly",) if self.read_only else ()
        return (nbdkit, "--foreground", *read_only, "file", f"file={self.path}")

    def by_qemu_nbd(self, qemu_nbd: str) -> tuple[str, ...]:
        late = self.goes_on and not self.read_only and self.format in _WRITES_TABLES_LATE
        cache = self.options.cache or ("writethrough" if late else "writeback")
        # --persistent: it outlives a client. --shared=0: any number of them; `check` and a reconnect are further ones.
        words = [qemu_nbd, "--persistent", "--shared=0", f"--cache={cache}", f"--discard={self.options.discard}"]
        if self.read_only:
            words.append("--read-only")
        return (*words, "--image-opts", self._options("" if self.look else "locking=off"))

    def _options(self, of_file: str) -> str:
        """The image as QEMU's programs take it. The keeper has locked it, so they do not."""
        size = [f"{_SIZE_OF_VPC}=current_size"] if self.format == "vpc" else []
        sharing = ["force-share=on"] if self.look else []
        kind = "host_device" if os.path.exists(self.path) and stat.S_ISBLK(os.stat(self.path).st_mode) else "file"
        file = [f"driver={kind}", f"filename={self.path.replace(',', ',,')}", *([of_file] if of_file else [])]
        return ",".join([f"driver={self.format}", *self._part, *size, *sharing, *(f"file.{one}" for one in file)])
