# SPDX-License-Identifier: GPL-2.0-or-later
"""Our end of TLS: targets that trust the authority of the tests, and failures, whole."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from nbdattach.connection import client
from nbdattach.errors import NbdattachError
from nbdattach.protocol.target import Target, with_tls

V2, V3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
NOT_VERIFIED = "the server is not verified: its certificate "
OTHER_NAME = "if it is the right server under another name: --tls-hostname NAME"
NO_WAY = "server and client have no TLS settings in common"
NO_TLS = ("the server's data is not TLS", "is there a proxy or firewall in between?")


def trusting(pki: Path, place: Target, **tls: Any) -> Target:
    return with_tls(place, **{"ca": str(pki / "good" / "ca-cert.pem"), **tls})


def failure(target: Target, kernel: bool = False, seconds: float = 60) -> NbdattachError:
    with pytest.raises(NbdattachError) as caught:
        client.connect(target, seconds, kernel_tls=kernel).stream.close()
    error = caught.value
    assert str(error) == f"{error.thing}: {error.cause}"
    assert str(error).isprintable()
    assert error.hint.isprintable()
    return error


def told(error: NbdattachError, pki: Path) -> tuple[int, str, str]:
    return error.exit_code, error.cause.replace(str(pki), "PKI"), error.hint.replace(str(pki), "PKI")


def ours_from(pki: Path, which: str) -> dict[str, str]:
    return {what: str(pki / which / f"client-{what}.pem") for what in ("cert", "key")} if which else {}
