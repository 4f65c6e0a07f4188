# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks LVM whether it would activate the volumes that it finds on an nbd device. Opens no device."""

from __future__ import annotations

import os
import re
import subprocess

from nbdattach.host.spawn import SYSTEM_PATH

FOLDER = "/etc/lvm"
SECONDS = 10
_KEYS = (
    "devices/global_filter", "devices/filter", "devices/use_devicesfile", "devices/devicesfile",
    "global/event_activation", "activation/auto_activation_volume_list",
)  # fmt: skip
_EVERYTHING = ["a|.*|"]
# udev gives a partition names like these, too, and one accepted name is enough for LVM (lvm.conf(5), devices/filter).
_NAMES = ("/dev/nbd0p1", "/dev/disk/by-partuuid/0", "/dev/disk/by-id/lvm-pv-uuid-0")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')

Settings = dict[str, list[str]]


def settings() -> Settings | None:
    """LVM's settings in effect, defaults included; each value is a list. None if LVM is not installed.

    Raises OSError with the message of lvmconfig if that fails.
    """
    try:
        done = subprocess.run(
            ["lvmconfig", "--type", "full", *_KEYS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"},
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        raise OSError(f"lvmconfig took more than {SECONDS} s") from None
    if done.returncode != 0:
        raise OSError(" ".join(done.stderr.split())[:200] or f"lvmconfig ended with {done.returncode}")
    # Values that are not set and have no default are left out.
    lines = (line.strip().partition("=") for line in done.stdout.splitlines())
    return {key: _values(text) for key, sign, text in lines if sign}


def _values(text: str) -> list[str]:
    """Parses ["a", "b"], "a", or a number."""
    if text.startswith(("[", '"')):
        return [re.sub(r"\\(.)", r"\1", value) for value in _STRING.findall(text)]
    return [text]


def why_kept_out(found: Settings) -> str:
    """The setting that keeps LVM from activating volumes of nbd devices; empty if none does."""
    file = f"{FOLDER}/devices/{''.join(found.get('devicesfile', []))}"
    # If there is such a file, LVM ignores the filters (lvmdevices(8)).
    if found.get("use_devicesfile") == ["1"] and os.path.isfile(file):
        return f"uses only the devices in {file}"
    for key in ("global_filter", "filter"):
        if _rejects(found.get(key, _EVERYTHING)):
            return f"its {key} rejects nbd devices, so no volume on them can be used"
    if found.get("event_activation") == ["0"]:
        return "its event_activation is off"
    chosen = found.get("auto_activation_volume_list")
    if chosen is not None:
        return f"activates automatically only: {', '.join(chosen) or 'nothing'}"
    return ""


def _rejects(patterns: list[str]) -> bool:
    """The first pattern that matches a name decides for that name; a device needs one accepted name, or none at all."""
    verdicts = [_verdict(patterns, name) for name in _NAMES]
    return "r" in verdicts and "a" not in verdicts


def _verdict(patterns: list[str], name: str) -> str | None:
    """ "a", "r", or None if none matches. A pattern is such a letter, any delimiter, a regex, the delimiter."""
    for pattern in patterns:
        try:
            if re.search(pattern[2:-1], name):
                return pattern[0]
        except re.error:
            continue
    return None


def line_to_keep_out(found: Settings) -> str:
    """A command if the filter is LVM's default, else the line to write."""
    there = found.get("global_filter", _EVERYTHING)
    # LVM accepts all other names anyway. If the line said so, LVM would accept nbd devices by their other names.
    kept = [one for one in there if one not in _EVERYTHING and _verdict([one], "/dev/nbd0p1") is None]
    rules = ", ".join(f'"{one}"' for one in ["r|^/dev/nbd|", *kept])
    if there == _EVERYTHING:
        return f"echo 'devices {{ global_filter = [ {rules} ] }}' >>{FOLDER}/lvmlocal.conf"
    return f"in {FOLDER}/lvm.conf, section devices: global_filter = [ {rules} ]"
