# SPDX-License-Identifier: GPL-2.0-or-later
"""How a process leaves the command that started it. Each is tried in a fresh interpreter, as worker and relay are."""

from __future__ import annotations

import os
import subprocess

import pytest

from nbdattach.host.spawn import bare_python


def run_in_bare_python(code: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs `code`, which may print to the descriptor `out`. Returns how it ended, and the words that were printed."""
    reader, out = os.pipe()
    command = bare_python("host", "background", str(out))
    place = command.index("-c") + 1
    command[place] = (
        command[place].removesuffix("background(sys.argv[1:])") + f"import os; out = int(sys.argv[1])\n{code}"
    )
    done = subprocess.run(command, pass_fds=[out], capture_output=True, text=True)
    os.close(out)
    with open(reader) as file:  # to the end: until the last process that has it has ended
        return done, file.read().split()


def test_process_goes_on_in_a_session_of_its_own_and_not_as_our_child() -> None:
    code = "background.leave_parent()\nprint(os.getpid(), os.getsid(0), file=open(out, 'w'))"
    done, (pid, session) = run_in_bare_python(code)
    assert done.returncode == 0
    assert int(pid) == int(session) != os.getsid(0)


@pytest.mark.parametrize("closed", [(), (0,), (0, 1, 2)])
def test_standard_streams_lead_nowhere_even_if_they_were_closed(closed: tuple[int, ...]) -> None:
    code = f"""
for number in {closed}:
    os.close(number)
background.leave_terminal()
os.write(2, b"lost")
print(*(os.readlink(f"/proc/self/fd/{{number}}") for number in (0, 1, 2)), file=open(out, "w"))
"""
    done, streams = run_in_bare_python(code)
    assert (done.returncode, done.stderr, streams) == (0, "", ["/dev/null"] * 3)
