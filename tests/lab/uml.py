# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of user-mode Linux: the command that starts it. One CPU, no emulation, boots in about two seconds."""

from __future__ import annotations

from pathlib import Path

from job import Job, kernel_line

# UML writes on its own stdout, so the channels get their own descriptors. It makes itself the
# leader of a new session, and its helper processes survive it: they are killed as a group, in every case.
_WRAPPER = """
trap 'kill -s KILL -- "-$uml" "$uml" 2>/dev/null' EXIT
trap 'exit 1' TERM
ulimit -c 0
exec 3<&0 4>&1 5>&2
"$@" </dev/null >&2 &
uml=$!
wait "$uml"
"""

# systemd's output goes to the console, which is passed on before the end.
_SYSTEMD_LINE = ("systemd.journald.forward_to_console=1", "systemd.show_status=0", "printk.time=1")

# The host sends frames as large as it likes to a tap device, and without gro=1 the guest drops them: TCP crawls.
_NETWORK = "vec0:transport=tap,gro=1,ifname="

# A guest's processes then run under seccomp instead of ptrace, which is much quicker; other versions ignore the word.
_SECCOMP = ("7.2",)


def command(job: Job, control: Path, kernel: Path) -> list[str]:
    """To be run in the folder `kernel`, as the program finds its C library from there."""
    source = "fd:3" if job.shell else "null"
    return [
        *("setpriv", "--pdeathsig", "TERM", "sh", "-c", _WRAPPER, "sh"),
        *("env", "LD_LIBRARY_PATH=.", "./linux.uml"),
        *(f"mem={job.memory}", f"uml_dir={control}", "umid=guest"),
        *("root=/dev/root", "rootfstype=hostfs", f"rootflags={job.root}", "ro", f"init={job.inside(control)}/init"),
        *("con=null", "con0=null,fd:5", "ssl=null", f"ssl0={source},fd:4"),
        *(["seccomp=on"] if job.kernel in _SECCOMP else []),
        *([_NETWORK + job.tap] if job.tap else []),
        *(_SYSTEMD_LINE if job.boot else []),
        *kernel_line(job, control),
    ]
