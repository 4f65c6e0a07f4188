# SPDX-License-Identifier: GPL-2.0-or-later
"""How many generated examples there are: a fixed budget in `make test`, which decides, and more in `make test-all`.

`make test` takes the same examples each time. Random ones would find more in the long run, but at some moment that has
nothing to do with the change that is tested. So NBDATTACH_EXAMPLES=all generates random ones, and twenty times as many;
a failure prints the settings that generate its example again.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A time limit for one example depends on the load of the machine, and so does the health check of their speed.
_UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
settings.register_profile("fixed", _UNTIMED, max_examples=50, derandomize=True)
settings.register_profile("all", _UNTIMED, max_examples=1000, print_blob=True)
settings.load_profile("all" if os.environ.get("NBDATTACH_EXAMPLES") == "all" else "fixed")
