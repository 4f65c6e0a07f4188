# SPDX-License-Identifier: GPL-2.0-or-later
"""The program: the console script `nbdattach`, and `python -m nbdattach`."""

from __future__ import annotations

import gc
from typing import NoReturn

# New objects until the next look for garbage. Python's own figure has 60 such looks while a command imports what it
# needs, a twentieth of its time, and there is no garbage then.
_BETWEEN_LOOKS = 100_000


def main() -> NoReturn:
    gc.set_threshold(_BETWEEN_LOOKS)
    from nbdattach.cli import main as command

    command.main()


if __name__ == "__main__":
    main()
