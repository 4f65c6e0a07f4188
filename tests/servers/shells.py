# SPDX-License-Identifier: GPL-2.0-or-later
"""Interactive shells on a terminal, with a user who presses Tab. They load our completions, and no configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from terminal import Terminal, terminal

TREE = Path(__file__).resolve().parents[2] / "completions"
SHELLS = ("bash", "zsh", "fish")
_READY = "shell is ready"


@dataclass
class Shell:
    """A shell that shows its prompt."""

    screen: Terminal

    def completes(self, typed: str, line: str) -> None:
        """Tab replaces the typed words by that line. It is echoed instead of run."""
        self.screen.type(f"{typed}\t\x01echo +\r")
        self.screen.see(f"+{line}")
        self.screen.type("echo 'next' 'line'\r")
        self.screen.see("next line")


@contextlib.contextmanager
def shell(name: str, home: Path, path: str, installed: bool = False) -> Iterator[Shell]:
    """Completions are those of the checkout, or those that the shell finds by itself; `path` is for commands."""
    setup = {
        "bash": f". /usr/share/bash-completion/bash_completion\n{'' if installed else f'. {TREE}/bash/nbdattach'}\n",
        "zsh": f"{'' if installed else f'fpath=({TREE}/zsh $fpath)'}\nautoload -U compinit; compinit -u\n",
        "fish": "" if installed else f"set -p fish_complete_path {TREE}/fish\n",
    }[name]
    setup += "PS1='> '\n" if name != "fish" else "function fish_prompt; echo '> '; end\nset fish_greeting\n"
    setup += f"echo '{_READY[:5]}' '{_READY[6:]}'\n"
    command, environment = _command(name, home, setup)
    with terminal(command, 24, 200, HOME=str(home), PATH=path, **environment) as screen:
        screen.see(_READY)
        yield Shell(screen)


def _command(name: str, home: Path, setup: str) -> tuple[list[str], Mapping[str, str]]:
    """The command that starts the shell so that it reads `setup` and nothing else of the user."""
    file = home / {"bash": "bashrc", "zsh": ".zshrc", "fish": "setup.fish"}[name]
    file.write_text(setup)
    if name == "bash":
        return ["bash", "--noprofile", "--rcfile", str(file), "-i"], {}
    if name == "zsh":
        return ["zsh", "-i"], {"ZDOTDIR": str(home)}
    return ["fish", "--interactive", "--init-command", f"source {file}"], {}
