# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates for the tests of TLS, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from certificates import FUTURE, PAST, Authority, self_signed


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of folders, each with the certificates of one server or client."""
    root = tmp_path_factory.mktemp("pki")
    ours, other = Authority(root / "ours"), Authority(root / "other", "other-ca")
    old = Authority(root / "old", "old-ca", PAST)
    again = Authority(root / "again")  # the same name, another key
    ours.issue(root / "good", "server")
    ours.issue(root / "expired", "server", valid=PAST)
    ours.issue(root / "future", "server", valid=FUTURE)
    ours.issue(
        root / "elsewhere", "server", alternatives="DNS:db2.example,DNS:*.db3.example,IP:10.0.0.1,IP:2001:db8::1"
    )
    ours.issue(root / "common", "server", name="db4", alternatives="")
    ours.issue(root / "many", "server", alternatives=",".join(f"DNS:h{number}" for number in range(300)))
    ours.issue(root / "hostile", "server", name="\x1b[2J\u202e'", alternatives="")
    ours.issue(root / "client", "client", name="me", alternatives="")
    ours.issue(root / "late", "client", name="me", alternatives="", valid=PAST)
    ours.issue(root / "locked", "client", name="me", alternatives="", password="secret")
    other.issue(root / "stranger", "client", name="me", alternatives="")
    other.issue(root / "unknown", "server")
    again.issue(root / "namesake", "server")
    old.issue(root / "outdated", "server")
    ours.issue(root / "revoked", "server")
    (root / "revoked" / "ca-crl.pem").write_bytes(ours.revoke(root / "revoked" / "server-cert.pem").read_bytes())
    ours.issue(root / "weak", "server", key=["-newkey", "rsa:1024"])
    self_signed(root / "self")
    return root
