# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors that go to another process of ours arrive whole, also where that is of an older or a newer version."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbdattach
from nbdattach import errors
from nbdattach.error_facts import error_of, facts_of
from nbdattach.errors import DeviceInUse, KernelRefused, NbdattachError, NotAttached, Refused
from nbdattach.monitor.control import NoMonitor
from nbdattach.protocol.options import OptionRefused

for module in pkgutil.walk_packages(nbdattach.__path__, "nbdattach."):
    if module.name != "nbdattach.__main__":
        importlib.import_module(module.name)


def kinds(base: type[NbdattachError]) -> list[type[NbdattachError]]:
    """It and all below it; other tests may have classes of their own."""
    ours = [sub for sub in base.__subclasses__() if sub.__module__.startswith("nbdattach.")]
    return [base, *(kind for sub in ours for kind in kinds(sub))]


KINDS = kinds(NbdattachError)
EVERY = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
# Names of a server as we read them: bytes that are not UTF-8 are surrogates.
OF_BYTES = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"])
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | OF_BYTES)
OF_TYPE = {str: TEXT, int: st.integers(0, (1 << 32) - 1), float: st.floats(0, 1e9)}


def made(kind: type[NbdattachError]) -> st.SearchStrategy[NbdattachError]:
    types = typing.get_type_hints(kind.__init__)
    given_types = {name: OF_TYPE[types[name]] for name in inspect.signature(kind).parameters if types[name] in OF_TYPE}
    return st.builds(kind, **given_types)


def sent(error: NbdattachError, **changed: Any) -> NbdattachError:
    """As another process gets it; `changed` are facts that its sender says differently, None if not at all."""
    facts = {name: fact for name, fact in {**facts_of(error), **changed}.items() if fact is not None}
    return error_of(json.loads(json.dumps(facts)))


def facts_seen(error: NbdattachError) -> object:
    return type(error), str(error), error.exit_code, error.args, vars(error)


@EVERY
@given(data=st.data())
def test_an_error_of_each_class_arrives_whole(kind: type[NbdattachError], data: st.DataObject) -> None:
    error = data.draw(made(kind))
    assert facts_seen(sent(error)) == facts_seen(error)


@EVERY
@given(data=st.data())
def test_each_class_declares_its_further_facts_with_defaults(kind: type[NbdattachError], data: st.DataObject) -> None:
    error = data.draw(made(kind))
    further = vars(error).keys() - {"thing", "cause", "hint"}
    assert further == typing.get_type_hints(kind).keys()
    assert all(hasattr(kind, name) for name in further)


def test_no_two_classes_have_one_name() -> None:
    assert len({kind.__name__ for kind in KINDS}) == len(KINDS)


def test_all_classes_are_among_them() -> None:
    of_errors = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, NbdattachError)}
    assert set(KINDS) == {NoMonitor, OptionRefused, *of_errors}


# -- of another version ------------------------------------------------------------------------------------------------

IN_USE = DeviceInUse("/dev/nbd0", "mounted at /srv", "release it first", ["mounted at /srv: umount /srv"])


@pytest.mark.parametrize("kind", [NbdattachError, *NbdattachError.__subclasses__()], ids=lambda kind: kind.__name__)
def test_an_older_version_says_the_exit_code_alone(kind: type[NbdattachError]) -> None:
    error = error_of({"thing": "monitor", "cause": "no", "hint": "ask again", "code": kind.exit_code})
    assert error.exit_code == kind.exit_code
    assert (str(error), error.hint) == ("monitor: no", "ask again")


def test_an_older_version_that_says_the_exit_code_alone_means_the_class_that_it_knew() -> None:
    known: dict[int, type[NbdattachError]]
    known = {1: NbdattachError, 2: errors.Malformed, 3: errors.NoConnection, 4: Refused, 5: errors.TlsFailed}
    known |= {6: KernelRefused, 7: DeviceInUse, 8: NotAttached}
    said = {code: error_of({"thing": "x", "cause": "no", "hint": "h", "code": code}) for code in known}
    assert {code: type(error) for code, error in said.items()} == known
    assert isinstance(said[7], DeviceInUse)
    assert said[7].users == ()


def test_an_older_version_reads_its_four_facts() -> None:
    facts = facts_of(IN_USE)
    assert {name: facts[name] for name in ("thing", "cause", "hint", "code")} == {
        "thing": "/dev/nbd0", "cause": "mounted at /srv", "hint": "release it first", "code": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "code", "kind"),
    [
        (["HeldByVolume", "DeviceInUse", "NbdattachError"], 7, DeviceInUse),
        (["HeldByVolume", "NbdattachError"], 7, DeviceInUse),
        (["ServerFull", "OptionRefused", "Refused", "NbdattachError"], 4, OptionRefused),
        (["NoQuota", "NbdattachError"], 9, NbdattachError),
        (["DeviceInUse", "NbdattachError"], 6, KernelRefused),
        ([], 7, DeviceInUse),
    ],
)
def test_a_class_of_a_newer_version_is_the_nearest_that_is_known(
    names: list[str], code: int, kind: type[NbdattachError]
) -> None:
    error = sent(IN_USE, kinds=names, code=code)
    assert (type(error), error.exit_code) == (kind, code)
    assert str(error) == str(IN_USE)
    assert kind.exit_code != 9  # the class is as it was


@pytest.mark.parametrize("code", [0, 256, 1 << 40])
def test_what_is_no_exit_code_of_a_failure_is_not_taken(code: int) -> None:
    assert sent(IN_USE, code=code).exit_code == 1


@pytest.mark.parametrize("more", [None, {}, {"users": "umount"}, {"users": [5]}, {"users": None, "colour": "blue"}])
def test_a_fact_that_is_missing_or_unreadable_has_its_default(more: object) -> None:
    error = sent(IN_USE, more=more)
    assert isinstance(error, DeviceInUse)
    assert error.users == ()


def test_facts_that_are_missing_have_defaults() -> None:
    assert str(error_of({"code": 6})) == "nbdattach: it does not say why"
    assert isinstance(error_of({"code": 6}), KernelRefused)


@pytest.mark.parametrize(
    "content", [None, [], "no", {"cause": 5}, {"code": "7"}, {"kinds": "DeviceInUse"}, {"more": []}], ids=repr
)
def test_facts_of_a_wrong_type_are_a_value_error(content: object) -> None:
    with pytest.raises(ValueError, match="Facts"):
        error_of(content)


def test_a_list_may_be_cut() -> None:
    error = DeviceInUse("/dev/nbd0", "open", "kill", [str(number) for number in range(9)])
    assert facts_of(error, 2)["more"] == {"users": ["0", "1"], "uses": []}
    assert facts_of(error)["more"] == {"users": [*"012345678"], "uses": []}
