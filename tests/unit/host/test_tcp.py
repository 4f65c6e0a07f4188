# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a TCP peer has owed an answer: the numbers of struct tcp_info go in, looked at every second or so."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest

from nbdattach.host.tcp import Info, Silence


@dataclass
class Peer:
    """TCP's figures at a moment. The moments are seconds; a question about a closed window is a probe."""

    sent: float = 0.0  # when data was sent last
    acknowledged: float = 0.0  # when the last ACK came
    unacked: int = 0
    retransmits: int = 0
    probes: int = 0
    now: float = 0.0

    def getsockopt(self, _level: int, _option: int, size: int) -> bytes:
        numbers = [0] * 16
        numbers[4] = self.unacked
        numbers[9] = round((self.now - self.sent) * 1000)
        numbers[12] = round((self.now - self.acknowledged) * 1000)
        content = struct.pack("=BBBB4x16I", 1, 0, self.retransmits, self.probes, *numbers)
        assert len(content) == size
        return content


def looked_at(peer: Peer, silence: Silence, now: float) -> float:
    peer.now = now
    return silence.seconds(Info(peer), now)


def test_a_peer_that_owes_nothing_is_not_silent_however_long_nothing_came() -> None:
    silence, peer = Silence(), Peer(sent=10, acknowledged=10)
    assert [looked_at(peer, silence, now) for now in (11, 100, 10_000)] == [0, 0, 0]


def test_data_without_an_acknowledgement_is_silence_since_it_was_sent() -> None:
    silence, peer = Silence(), Peer(sent=100, acknowledged=10, unacked=1)
    assert looked_at(peer, silence, 101) == pytest.approx(1)
    peer.sent = 102  # once more
    assert looked_at(peer, silence, 105) == pytest.approx(5)


def test_one_acknowledgement_ends_the_silence_though_more_is_under_way() -> None:
    silence, peer = Silence(), Peer(sent=100, acknowledged=10, unacked=1)
    assert looked_at(peer, silence, 130) == pytest.approx(30)
    peer.acknowledged, peer.sent = 130.5, 130.6
    assert looked_at(peer, silence, 131) == pytest.approx(0.4)


def test_a_peer_that_answers_each_question_about_its_closed_window_is_never_silent() -> None:
    """It has not read for a whole day, and the probes are two minutes apart."""
    silence, peer = Silence(), Peer(sent=0, acknowledged=0)
    for now in range(1, 24 * 3600):
        since = now % 120
        if since == 119:
            peer.probes = 1  # on its way
        elif since == 0:
            peer.probes, peer.acknowledged = 0, now
        assert looked_at(peer, silence, now) < 1


def test_a_question_about_a_closed_window_that_is_not_answered_is_silence() -> None:
    silence, peer = Silence(), Peer(sent=0, acknowledged=100, probes=1)
    assert looked_at(peer, silence, 200) == 0
    peer.probes = 2
    assert looked_at(peer, silence, 230) == pytest.approx(30)


@pytest.mark.parametrize(
    ("retransmits", "probes", "insists"), [(0, 0, False), (1, 0, False), (2, 0, True), (0, 1, False), (0, 2, True)]
)
def test_one_lost_packet_is_no_sign(retransmits: int, probes: int, insists: bool) -> None:
    assert Info(Peer(retransmits=retransmits, probes=probes)).insists is insists
