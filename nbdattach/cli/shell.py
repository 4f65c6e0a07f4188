# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol of our completion scripts (completions/): the words that a shell sends, and the lines that it reads.

It began as click's, but its versions differ: 8.4.0 answers fish in another form than 8.3 and 8.4.2.
"""

from __future__ import annotations

import os

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)


class Bash(BashComplete):
    """One "type,word" a line."""

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value}"


class Zsh(ZshComplete):
    """Three lines a word: its type, itself, and its help or "_". Before help, zsh wants the word's colons escaped."""

    def format_completion(self, item: CompletionItem) -> str:
        word = item.value.replace(":", "\\:") if item.help else item.value
        return f"{item.type}\n{word}\n{item.help or '_'}"


class Fish(FishComplete):
    """One "type,word" a line, with a tab and its help. fish sends the unfinished word unchanged, with its quotes."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args = split_arg_string(os.environ["COMP_WORDS"])[1:]
        typed = next(iter(split_arg_string(os.environ["COMP_CWORD"])), "")
        return args[:-1] if typed and args[-1:] == [typed] else args, typed

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value}\t{item.help}" if item.help else f"{item.type},{item.value}"


def speak_ours() -> None:
    """From now on click answers shells in this protocol."""
    for shell in (Bash, Zsh, Fish):
        add_completion_class(shell)
