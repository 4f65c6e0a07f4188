# SPDX-License-Identifier: GPL-2.0-or-later
"""An option is declared once: command line, table, API and record have the same ones."""

from __future__ import annotations

import dataclasses
import inspect

from nbdattach import api
from nbdattach.attached.state import Record
from nbdattach.boot import nbdtab
from nbdattach.cli import main
from nbdattach.connect_options import ConnectOptions, ImageOptions, LastingOptions, TlsOptions, options_of
from nbdattach.protocol.target import with_tls

# Fields that no user sets.
INTERNAL = {"table", "root", "server"}


def names(record: type[LastingOptions] | type[TlsOptions] | type[ImageOptions]) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def test_each_field_can_be_set_by_users() -> None:
    assert {option.field for option in options_of(ConnectOptions).values()} == names(ConnectOptions) - INTERNAL
    assert {option.field for option in options_of(TlsOptions).values()} == names(TlsOptions)
    assert {option.field for option in options_of(ImageOptions).values()} == names(ImageOptions)


def test_the_command_line_and_the_table_have_each_option() -> None:
    declared = {*options_of(ConnectOptions), *options_of(TlsOptions), *options_of(ImageOptions)}
    long = {name[2:] for param in main.cli.commands["connect"].params for name in param.opts if name.startswith("--")}
    assert declared <= long
    assert {*declared, "no-handshake"} == nbdtab.NAMES_OF_CONNECT


def test_the_api_has_each_option_with_the_same_default() -> None:
    parameters = inspect.signature(api.connect).parameters
    for field in dataclasses.fields(ConnectOptions):
        if field.name not in INTERNAL:
            name = {"raw_size": "size"}.get(field.name, field.name)
            assert parameters[name].default == field.default, name
    for field in dataclasses.fields(TlsOptions):
        name = "tls" if field.name == "required" else f"tls_{field.name}"
        assert parameters[name].default == field.default, name
    for field in dataclasses.fields(ImageOptions):
        assert parameters[field.name].default == field.default, field.name


def test_a_target_takes_each_option_of_tls() -> None:
    parameters = dict(inspect.signature(with_tls).parameters)
    del parameters["target"]
    assert {name: one.default for name, one in parameters.items()} == dataclasses.asdict(TlsOptions())


def test_a_record_keeps_each_option_that_lasts() -> None:
    assert names(LastingOptions) <= names(Record)
    assert ConnectOptions().lasting().keys() == names(LastingOptions)
