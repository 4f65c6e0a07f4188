# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m nbdattach`."""

from nbdattach.cli.main import main

if __name__ == "__main__":
    main()
