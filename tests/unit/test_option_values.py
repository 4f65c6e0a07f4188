# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes and times as people write them, and what to type in the place of an invalid one."""

from __future__ import annotations

import re

import pytest

from nbdattach import option_values
from nbdattach.boot import kernel_command_line, nbdtab
from nbdattach.cli import main
from nbdattach.connect_options import ConnectOptions, ImageOptions, TlsOptions, options_of
from nbdattach.option_values import Invalid

K = 1024
SIZES = {
    "0": 0,
    "4096": 4096,
    "4096B": 4096,  # parted
    "4K": 4 * K,
    "4k": 4 * K,
    "4KB": 4 * K,
    "4kb": 4 * K,
    "4KiB": 4 * K,
    "4kIb": 4 * K,
    "1M": K**2,
    "1m": K**2,
    "512MiB": 512 * K**2,
    "1G": K**3,
    "1.5G": 3 * K**3 // 2,
    "0.5K": 512,
    "2TB": 2 * K**4,
    "1P": K**5,
    "8191P": 8191 * K**5,
    "9223372036854775807": (1 << 63) - 1,
    "001": 1,
}
TIMES = {
    "0": 0.0,
    "30": 30.0,
    "0.5": 0.5,
    "1.1": 1.1,
    "500ms": 0.5,
    "1500ms": 1.5,
    "30s": 30.0,
    "30S": 30.0,
    "5m": 300.0,
    "5min": 300.0,
    "5MIN": 300.0,
    "5Min": 300.0,
    "1.5h": 5400.0,
    "2H": 7200.0,
    "1d": 86400.0,
    "365D": 31536000.0,
}
NO_SIZES: tuple[str, ...] = (
    "",
    "K",
    "-1K",
    "+1K",
    "1b",
    "1E",
    "1Ki",
    "1Kib2",
    "1KK",
    "1 K",
    " 1K",
    "1K ",
    "1.K",
    ".5K",
    "1_000",
    "1e3",
)
NO_SIZES += ("0x10", "1K\n", "٣K", "1\u212a", "0.3K", "1.5", "1s", "99999999999999999999")
NO_TIMES = (
    "",
    "s",
    "-1s",
    "1M",
    "1MS",
    "1Ms",
    "1mS2",
    "5 m",
    "5m ",
    "1w",
    "1y",
    "1e3",
    "nan",
    "inf",
    "٣s",
    "1h30m",
    "1\n",
)


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_a_size_may_have_a_unit_in_powers_of_1024(text: str, size: int) -> None:
    assert option_values.size(text, 0) == size


@pytest.mark.parametrize(("text", "seconds"), TIMES.items())
def test_a_time_may_have_a_unit(text: str, seconds: float) -> None:
    found = option_values.seconds(text)
    assert (found, type(found)) == (seconds, float)


@pytest.mark.parametrize("text", NO_SIZES)
def test_nothing_is_guessed_of_a_size(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        option_values.size(text, 0)
    assert option_values.size(caught.value.example, 1)


@pytest.mark.parametrize("text", NO_TIMES)
def test_nothing_is_guessed_of_a_time(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        option_values.seconds(text, 1)
    assert option_values.seconds(caught.value.example, 1)


@pytest.mark.parametrize(
    ("text", "example"),
    [("5M", "5m"), ("5 min", "5m"), ("2hours", "2h"), ("10sec", "10s"), ("1,5", "1.5"), ("1w", "30s"), ("-5", "30s")],
)
def test_the_time_that_may_be_meant_is_offered(text: str, example: str) -> None:
    with pytest.raises(Invalid) as caught:
        option_values.seconds(text)
    assert caught.value.example == example


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("1k", 1024), ("2K", 2048), ("4KiB", 4096), ("0.5K", 512)])
def test_a_block_size_may_have_a_unit(text: str, size: int) -> None:
    assert option_values.block_size(text) == size


@pytest.mark.parametrize("text", ["auto", "AUTO", "Auto"])
def test_a_word_may_be_in_upper_case(text: str) -> None:
    assert option_values.connections(text) == 0
    assert option_values.one_of(text, option_values.BACKENDS) == "auto"
    assert option_values.on_loss("WAIT:5m") == 300
    assert option_values.on_loss("Fail") == 0


@pytest.mark.parametrize("text", ["x", "", "9" * 30])
@pytest.mark.parametrize("record", [ConnectOptions, TlsOptions, ImageOptions])
def test_each_example_is_valid(record: type[ConnectOptions] | type[TlsOptions] | type[ImageOptions], text: str) -> None:
    for option in options_of(record).values():
        if option.parse is None:
            continue
        try:
            option.parse(text)
        except Invalid as error:
            option.parse(error.example)


def test_the_table_and_the_kernel_command_line_know_the_units() -> None:
    words = "bs=4k,io-timeout=1m,retry-for=2min,dead-timeout=1h,size=1.5G,no-handshake,connect-timeout=500ms,conns=AUTO"
    root = kernel_command_line.parse(f"nbdroot=nbd://db1/disk nbdopts={words}", {})
    assert root
    for options in (nbdtab.parse(f"nbd0 db1 disk {words}", "nbdtab").entries[0].options, root.options):
        assert (options.block_size, options.raw_size, options.connections) == (4096, 3 * K**3 // 2, 0)
        times = options.io_timeout, options.retry_for, options.on_loss, options.connect_timeout
        assert times == (60, 120, 3600, 0.5)


def test_each_option_with_a_size_or_a_time_is_parsed_here() -> None:
    """No command has a parser of numbers of its own."""
    for name in main.cli.commands:
        for param in main.cli.commands[name].params:
            if re.search("time|size|for$|offset|dead|watch-", param.name or "") and not getattr(
                param, "is_flag", False
            ):
                text = "4K" if "size" in param.opts[-1] or "offset" in param.opts[-1] else "2m"
                assert param.type.convert(text, param, None) in (4096, 120.0), (name, param.name)
