# SPDX-License-Identifier: GPL-2.0-or-later
"""What a single word of a command line may be, by its form. For errors only."""

from __future__ import annotations

import os.path
import re

from nbdattach.attached import names
from nbdattach.cli import types
from nbdattach.own_server.source import may_be_image


def is_place(word: str) -> bool:
    """Whether the word alone can only be something to attach, or a device."""
    return is_device(word) or is_image(word) or bool(re.search(r"[/:]|^\[", word))


def is_device(word: str) -> bool:
    """Whether it can only be meant as a device. Not each of these is one of ours."""
    return types.is_device(word) or word.startswith(names.LINKS) or bool(re.match(r"/dev/(nbd|loop)\d", word))


def is_folder(word: str) -> bool:
    """Whether it is an absolute path, and not that of a device or an image."""
    return word.startswith("/") and not word.startswith("/dev/") and not is_image(word)


def is_image(word: str) -> bool:
    """Whether it is a path, or a name, that can only be meant as an image."""
    if "://" in word or word.startswith("["):
        return False
    is_other_device = word.startswith("/dev/") and not is_device(word)
    return is_other_device or word.startswith(("./", "../", "~/")) or may_be_image(os.path.basename(word))


def may_be_path(text: str) -> bool:
    """Whether it may be the path of an image or a socket; "db1:/disk" is a mistyped server."""
    return may_be_image(text) and not re.match("[^/]*:|nbds?//", text)
