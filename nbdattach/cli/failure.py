# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures as JSON, for programs: one object on standard output, and nothing else there.

The object is {"error": {...}}. A command on several devices or targets does what it can: then `errors` has all failures
if there are several, and `results` what the command would have printed without a failure. `check` has these in its own
document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nbdattach.errors import DeviceInUse, NbdattachError


class Failures(Exception):
    """The failures of one command; the first decides the exit code.

    `said`: they have been printed for people. `document`: what to print for programs, in the place of ours.
    """

    def __init__(
        self,
        errors: Sequence[NbdattachError],
        results: list[Any] | None = None,
        *,
        said: bool = False,
        document: object = None,
    ) -> None:
        super().__init__(*errors)
        self.errors = tuple(errors)
        self.said = said
        self._results = results
        self._document = document

    @property
    def document(self) -> object:
        if self._document is not None:
            return self._document
        found = [error_object(error) for error in self.errors]
        several = {"errors": found} if len(found) > 1 else {}
        results = {} if self._results is None else {"results": self._results}
        return {"error": found[0], **several, **results}


def asked_for(arguments: Sequence[str]) -> bool:
    """Whether the command line has --json, even if it is wrong otherwise. A server's words in brackets are not ours.

    `status --format json` means the same; other commands have the format of an image in --format.
    """
    inside, before = False, ""
    is_status = next((word for word in arguments if not word.startswith("-")), "") == "status"
    for word in arguments:
        if word in ("--", "--json") and not inside:
            return word == "--json"
        if is_status and (word.lower() == "--format=json" or (before, word.lower()) == ("--format", "json")):
            return True
        inside, before = word == "[" or (inside and word != "]"), word
    return False


def error_object(error: NbdattachError) -> dict[str, object]:
    users = [*error.uses] if isinstance(error, DeviceInUse) else []
    return _object(error.word, error.exit_code, error.thing, str(error), error.hint, users)


def document_of(kind: str, exit_code: int, thing: str, message: str, hint: str) -> dict[str, object]:
    """Of a failure that is no error of ours."""
    return {"error": _object(kind, exit_code, thing, message, hint, [])}


def _object(
    kind: str, exit_code: int, thing: str, message: str, hint: str, users: list[dict[str, object]]
) -> dict[str, object]:
    return {
        "kind": kind,
        "exit_code": exit_code,
        "thing": thing,
        "message": message,
        "hint": hint,
        "users": users,
    }
