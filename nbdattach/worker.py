"""The process that stays behind an ioctl attachment: sets the device up and blocks in NBD_DO_IT.

It is run by a bare interpreter (`python -I -S`) as a process of its own, because one forked from a loaded
command line keeps that memory for good. So it imports next to nothing, and nothing outside this package's
`ioctl` and `uapi`. `ioctl_backend` starts it; they speak over two pipes:

    reports (worker -> parent)  "ready" | "failed STEP ERRNO", and at its end "ended ERRNO"; a line each
    orders  (parent -> worker)  "G": go into NBD_DO_IT; "C": committed, live on without me; closed before: undo all
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the module signal builds enums on it: 0.9 MB
import _thread
import os
import sys

from nbdattach import ioctl

TYPE_CHECKING = False  # the module typing costs 1 MB
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

EBUSY = 16
ENOTTY = 25
EPIPE = 32
NBD_FLAG_READ_ONLY = 2
GO = b"G"
COMMIT = b"C"
# A server that got NBD_CMD_DISC closes its end at once; one that does not is cut off after so many seconds.
GOODBYE_SECONDS = 5


class StepFailed(Exception):
    """The ioctl named `step` failed with `errno`."""

    def __init__(self, step: str, errno: int) -> None:
        super().__init__(step, errno)
        self.step = step
        self.errno = errno


def set_up(kernel: Any, node: int, sockets: Iterable[int], block_size: int, blocks: int, flags: int) -> None:
    """All ioctls up to NBD_DO_IT, in their order; undoes what it did when one fails.

    `kernel` is the module `ioctl` (or, in tests, something that behaves like it). Raises `StepFailed`.
    All NBD_SET_SOCK of a device must come from the thread that came first, else the kernel says EBUSY.
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
    except OSError as error:
        if taken:  # else the device belongs to another task, whose sockets are none of our business
            clear(kernel, node)
        raise StepFailed(step, error.errno or 0) from error


def serve(kernel: Any, node: int) -> int:
    """NBD_DO_IT and the cleaning up after it; the errno it ended with. EPIPE after a detach is a success."""
    errno = 0
    try:
        kernel.nbd_do_it(node)
    except OSError as error:
        errno = 0 if error.errno == EPIPE else error.errno or 0
    clear(kernel, node)
    return errno


def clear(kernel: Any, node: int) -> None:
    """Gives the device back. The partitions go with the next look at the (now empty) device."""
    for call in (kernel.nbd_clear_que, kernel.nbd_clear_sock, kernel.blkrrpart):
        try:
            call(node)
        except OSError:
            pass


def main(arguments: list[str]) -> None:
    path, state_file, options = arguments[:3]
    block_size, blocks, flags, orders, reports = map(int, arguments[3:8])
    sockets = list(map(int, arguments[8:]))
    if os.fork():
        os._exit(0)  # so that init, and not the command line, is the one to reap us
    os.setsid()
    # A signal in NBD_DO_IT makes the kernel shut the sockets down: none may reach this thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        node = _prepared(path, "swap" in options.split(","))
        set_up(ioctl, node, sockets, block_size, blocks, flags)
    except StepFailed as failed:
        _report(reports, f"failed {failed.step} {failed.errno}")
        return
    for sock in sockets:
        os.close(sock)  # the kernel has its own reference now
    _report(reports, "ready")
    if os.read(orders, 1) != GO:
        clear(ioctl, node)
        return
    _thread.start_new_thread(_watch, (path, node, orders))
    errno = serve(ioctl, node)
    if _is_free(path):  # else it is lost: somebody still uses it, and will want to know what it was
        _remove(state_file)
    _report(reports, f"ended {errno}")


def _watch(path: str, node: int, orders: int) -> None:
    """Second thread: detaches when the parent died before it was done, and on SIGTERM."""
    committed = os.read(orders, 1) == COMMIT
    while committed:
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        if _may_detach(path):
            break
    try:
        ioctl.nbd_disconnect(node)
        if committed:
            signal.sigtimedwait({signal.SIGTERM}, GOODBYE_SECONDS)
        ioctl.nbd_clear_sock(node)
    except OSError:
        pass


def _may_detach(path: str) -> bool:
    """Nobody uses the device, and all that was written to it is on the server. Says why not, in the kernel's log."""
    try:
        claim = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        why = "it is in use" if error.errno == EBUSY else os.strerror(error.errno or 0)
        _log(f"{path}: not detached on SIGTERM: {why}")
        return False
    try:
        os.fsync(claim)
    except OSError as error:
        _log(f"{path}: not detached on SIGTERM: flushing failed: {os.strerror(error.errno or 0)}")
        return False
    finally:
        os.close(claim)
    return True


def _prepared(path: str, swap: bool) -> int:
    """The open device. For swap: what the machine swaps to must not wait for memory, nor be killed for want of it."""
    step = "open"
    try:
        node = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # read-only: udev probes again what was open for writing
        if swap:
            step = "oom_score_adj"
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("-1000")
            step = "PR_SET_IO_FLUSHER"
            ioctl.pr_set_io_flusher()
            step = "mlockall"
            ioctl.mlockall()
    except OSError as error:
        raise StepFailed(step, error.errno or 0) from error
    return node


def _log(line: str) -> None:
    try:
        with open("/dev/kmsg", "w") as log:
            log.write(f"<4>nbdattach: {line}\n")
    except OSError:
        pass


def _report(reports: int, line: str) -> None:
    try:
        os.write(reports, line.encode() + b"\n")
    except OSError:
        pass  # the parent has long gone


def _is_free(path: str) -> bool:
    """The kernel keeps the size for as long as somebody else has the device open."""
    try:
        with open(f"/sys/block/{os.path.basename(path)}/size") as file:
            return file.read().strip() == "0"
    except OSError:
        return True


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
