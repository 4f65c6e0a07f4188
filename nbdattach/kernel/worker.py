# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that stays behind an ioctl attachment: sets the device up and blocks in NBD_DO_IT.

It is run by a bare interpreter (`python -I -S`) as a process of its own, because a fork of the command line would
keep all its memory for good. So it imports next to nothing, and of this package only modules that do the same and
say so. `backends.by_ioctl` starts it; they speak over two pipes:

    reports (worker -> parent)  "ready PID" | "failed STEP ERRNO", and at its end "ended ERRNO"; a line each
    orders  (parent -> worker)  "G": go into NBD_DO_IT; "C": committed, live on without me; "U", or closed before: undo

A stopped and continued worker (SIGSTOP, the freezer of suspend) leaves NBD_DO_IT too: the kernel knows no other way.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the module signal builds enums on it: 0.9 MB
import _thread
import os
import time

from nbdattach.host import background, kmsg, storage_daemon, syscalls
from nbdattach.kernel import ioctl
from nbdattach.kernel.bare_sysfs import attribute, is_free, loop_on, partitions
from nbdattach.kernel.flush import flush, mark_unflushed
from nbdattach.kernel.leftovers import UNFLUSHED, clear, forget, tidied
from nbdattach.kernel.lifeline import Lifeline

TYPE_CHECKING = False  # the module typing costs 1 MB
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

EIO = 5
EBUSY = 16
ENOTTY = 25
EPIPE = 32
NBD_FLAG_READ_ONLY = 2
GO = b"G"
COMMIT = b"C"
UNDO = b"U"
# A server that got NBD_CMD_DISC closes its end at once; if it does not, we cut it off after so many seconds.
GOODBYE_SECONDS = 5
# Seconds that we allow a program that only probes the device.
GLANCE_SECONDS = 2.0
_POLL = 0.01


class StepFailed(Exception):
    """The ioctl named `step` failed with `errno`."""

    def __init__(self, step: str, errno: int) -> None:
        super().__init__(step, errno)
        self.step = step
        self.errno = errno


def set_up(
    kernel: Any, node: int, sockets: Iterable[int], block_size: int, blocks: int, flags: int, timeout: int = 0
) -> None:
    """All ioctls up to NBD_DO_IT, in their order; if one fails, undoes those before it.

    `kernel` is the module `ioctl` (or, in tests, something that behaves like it). Raises `StepFailed`.
    All NBD_SET_SOCK of a device must come from the thread that sent the first one, else the kernel returns EBUSY.
    """
    step, taken = "NBD_SET_SOCK", False
    try:
        for sock in sockets:
            kernel.nbd_set_sock(node, sock)
            taken = True
        step = "NBD_SET_BLKSIZE"
        kernel.nbd_set_blksize(node, block_size)
        step = "NBD_SET_SIZE_BLOCKS"
        kernel.nbd_set_size_blocks(node, blocks)
        step = "NBD_SET_FLAGS"
        try:
            kernel.nbd_set_flags(node, flags)
        except OSError as error:
            if error.errno != ENOTTY:
                raise
            step = "BLKROSET"
            kernel.blkroset(node, bool(flags & NBD_FLAG_READ_ONLY))
        if timeout:  # in seconds; without it the driver never gives up on a request
            step = "NBD_SET_TIMEOUT"
            kernel.nbd_set_timeout(node, timeout)
    except OSError as error:
        if taken:  # else the device belongs to another task, and we must not clear its sockets
            clear(kernel, node)
        raise StepFailed(step, error.errno or 0) from error


def serve(kernel: Any, node: int, claim: Sequence[int] = (), path: str = "") -> int:
    """NBD_DO_IT and the cleaning up after it; returns its errno. EPIPE after a detach is a success.

    If the other thread has put a `claim` there by then, we close the other descriptor first: the kernel resets the size
    only if the device is open once.
    """
    errno = 0
    try:
        kernel.nbd_do_it(node)
    except OSError as error:
        errno = 0 if error.errno == EPIPE else error.errno or 0
    if claim:
        os.close(node)
    clear(kernel, claim[0] if claim else node, path)
    return errno


def main(arguments: list[str]) -> None:
    path, state_file, options = arguments[:3]
    block_size, blocks, flags, timeout, orders, reports = map(int, arguments[3:9])
    dead_peer = float(arguments[9])
    sockets = list(map(int, arguments[10:]))
    background.leave_parent()
    storage_daemon.outlive()
    # A signal in NBD_DO_IT makes the kernel shut the sockets down: none may reach this thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        node = _prepared(path, "swap" in options.split(","))
        set_up(ioctl, node, sockets, block_size, blocks, flags, timeout)
    except StepFailed as failed:
        _report(reports, f"failed {failed.step} {failed.errno}")
        return
    _report(reports, f"ready {os.getpid()}")
    if os.read(orders, 1) != GO:
        clear(ioctl, node)
        return
    watcher = _Watcher(path, state_file, node, sockets)
    _thread.start_new_thread(watcher.run, (orders, dead_peer))
    claim = watcher.claim
    errno = serve(ioctl, node, claim, path)
    if claim:
        _open_to_writers(claim[0])
    free = is_free(path)
    if free:
        forget(state_file)
    _report(reports, f"ended {errno}")
    if (claim or watcher.orphaned) and (not free or partitions(path)):  # a command that lives tidies up itself
        os.close(claim[0] if claim else node)
        _forget_once_free(path, state_file)


def _forget_once_free(path: str, state_file: str) -> None:
    """Waits a moment for a program that has the device open: it may only be probing, as udev and mount do.

    If it stays, the device is lost, and the state file still describes it.
    """
    name, end = os.path.basename(path), time.monotonic() + GLANCE_SECONDS
    ours = attribute(name, "pid")  # it stays as long as the program
    try:
        while time.monotonic() < end and attribute(name, "pid") in ("", ours):
            if is_free(path) and tidied(path, state_file):
                break
            time.sleep(_POLL)
    except OSError:
        pass  # the device itself has gone


class _Watcher:
    """The second thread: detaches if the parent died or gave up before it was done, and on SIGTERM.

    If the server is gone, it shuts the connections down, and the first thread, in the kernel, notices that.
    """

    def __init__(self, path: str, state_file: str, node: int, sockets: list[int]) -> None:
        self._path = path
        self._state_file = state_file
        self._node = node
        self._sockets = sockets
        # For the first thread, at its end: the descriptor of a claim, if there is one; whether the parent died.
        self.claim: list[int] = []
        self.orphaned = False

    def run(self, orders: int, dead_peer: float) -> None:
        order = os.read(orders, 1)
        committed = order == COMMIT
        self.orphaned = not order
        lifeline = Lifeline(self._sockets, dead_peer)
        while committed:
            if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, lifeline.pause) is None:
                if why := lifeline.why_broken():
                    kmsg.write(kmsg.WARNING, f"{self._path}: {why}; cutting its connections")
                    hang_up(self._sockets)
                    return
            elif self._claim_unused():
                break
        try:
            if committed:
                ioctl.nbd_disconnect(self.claim[0])
                signal.sigtimedwait({signal.SIGTERM}, GOODBYE_SECONDS)
            hang_up(self._sockets)
            ioctl.nbd_clear_sock(self.claim[0] if self.claim else self._node)
        except OSError:
            pass  # the server has hung up by itself, and the other thread is clearing away

    def _claim_unused(self) -> bool:
        """Claims the device for us alone, if it has no user and all written data is on the server.

        The claim is kept to the end, so that no program can begin to use a device that is about to go. During the
        second flush and after it the kernel refuses writes, because they would be lost. Logs a failure to the kernel's
        log.
        """
        path, state_file, claim = self._path, self._state_file, self.claim
        try:
            claim.append(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            if os.path.exists(f"{state_file}{UNFLUSHED}"):
                raise OSError(EIO, "")
            for closed in (False, True):  # a flush may take long, and the second one has little to do
                if loop_on(path):
                    raise OSError(EBUSY, "")
                if closed:
                    ioctl.blkroset(claim[0], True)
                flush(path)
        except OSError as error:
            why = "it is in use" if error.errno == EBUSY else f"flushing: {os.strerror(error.errno or 0)}"
            if claim and error.errno != EBUSY:
                pid = attribute(os.path.basename(path), "pid")
                mark_unflushed(state_file, f'{{"identity": [{pid or "null"}, null, null]}}')
            kmsg.write(kmsg.WARNING, f"{path}: not detached on SIGTERM: {why}")
            while claim:
                _open_to_writers(claim[0])
                os.close(claim.pop())
            return False
        return True


def hang_up(sockets: Iterable[int]) -> None:
    """Shuts the connections down from our side: the kernel may be stuck in sending to a server that reads no more."""
    import _socket  # 0.1 MB, which nearly no worker ever needs

    for number in sockets:
        try:
            _socket.socket(fileno=number).shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass


def _open_to_writers(claim: int) -> None:
    """Removes the read-only mark, because it would outlive the attachment."""
    try:
        ioctl.blkroset(claim, False)
    except OSError:
        pass  # the device itself has gone


def _prepared(path: str, swap: bool) -> int:
    """Opens the device. A worker that serves swap must not wait for memory, nor be killed when memory is short."""
    step = "open"
    try:
        node = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # read-only: when a writer closes it, udev probes again
        if swap:
            step = "oom_score_adj"
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("-1000")
            step = "PR_SET_IO_FLUSHER"
            syscalls.pr_set_io_flusher()
            step = "mlockall"
            syscalls.mlockall()
    except OSError as error:
        raise StepFailed(step, error.errno or 0) from error
    return node


def _report(reports: int, line: str) -> None:
    try:
        os.write(reports, line.encode() + b"\n")
    except OSError:
        pass  # the parent has long gone
