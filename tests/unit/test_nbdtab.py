"""The text of a table: what its lines mean, and where its mistakes are."""

from __future__ import annotations

from nbdattach.device import Device
from nbdattach.nbdtab import Entry, parse
from nbdattach.target import Target
from nbdattach.wishes import Wishes


def entry(line: str) -> Entry:
    """The one of a table of that line."""
    table = parse(line, "nbdtab")
    assert [str(mistake.error) for mistake in table.mistakes] == []
    (found,) = table.entries
    return found


def mistakes(text: str) -> list[str]:
    table = parse(text, "nbdtab")
    return [str(mistake.error) for mistake in table.mistakes]


def test_a_line_is_a_device_a_host_and_an_export() -> None:
    assert entry("nbd0 db1 disk") == Entry(1, Device(0), Target("db1", export="disk"), Wishes())


def test_options_follow() -> None:
    wishes = Wishes(block_size=4096, connections=4, on_loss=60.0, tag="t")
    assert entry("nbd0 db1 disk bs=4096,conns=4,on-loss=wait:60,tag=t,_netdev").wishes == wishes


def test_port_holds_for_its_line_only() -> None:
    table = parse("nbd0 db1 disk port=2000\nnbd1 db1 disk\n", "nbdtab")
    assert [one.target.port for one in table.entries] == [2000, 10809]


def test_mistake_has_its_line_and_column() -> None:
    assert mistakes("# disks\nnbd0 db1 disk bs=1,frob\n") == ["nbdtab:2:20: unknown option 'frob'"]
