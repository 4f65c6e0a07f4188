# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates of every kind that tests need, made with openssl: good ones, and those that must be refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

LOCAL = "DNS:localhost,IP:127.0.0.1,IP:::1"
# In the format of `openssl ca`: a time that is over, and one that is yet to come, for as long as this is run.
PAST = ("20200101000000Z", "20200201000000Z")
FUTURE = ("29990101000000Z", "29990201000000Z")
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
_CONFIG = """\
[ca]
default_ca = authority
[authority]
database = index
new_certs_dir = .
certificate = ca-cert.pem
private_key = ca-key.pem
rand_serial = yes
unique_subject = no
default_md = sha256
default_days = 2
default_crl_days = 2
policy = policy
copy_extensions = copy
[policy]
commonName = optional
"""


def make(directory: Path) -> Path:
    """`ca-cert.pem`, `server-cert.pem` and `server-key.pem`, as nbdkit names them; the directory."""
    authority = Authority(directory / "authority")
    return authority.issue(directory, "server")


class Authority:
    """A certificate authority; all its files are in `directory`. `name` is the common name."""

    def __init__(self, directory: Path, name: str = "test-ca", valid: tuple[str, str] | None = None) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.cert = directory / "ca-cert.pem"
        (directory / "config").write_text(_CONFIG)
        (directory / "index").touch()
        _openssl(directory, "req", *_KEY, "-nodes", "-subj", f"/CN={name}",
                 "-addext", "basicConstraints=CA:TRUE", "-keyout", "ca-key.pem", "-out", "request")  # fmt: skip
        self._ca("-selfsign", "-in", "request", "-out", "ca-cert.pem", "-notext", *_dates(valid))

    def issue(
        self,
        folder: Path,
        kind: str,
        name: str = "localhost",
        alternatives: str = LOCAL,
        valid: tuple[str, str] | None = None,
        password: str = "",
        key: Sequence[str] = _KEY,
    ) -> Path:
        """KIND-cert.pem and KIND-key.pem in the folder, with our ca-cert.pem if there is none; the folder."""
        folder.mkdir(exist_ok=True)
        if not (folder / "ca-cert.pem").exists():
            shutil.copy(self.cert, folder)
        secret_key, cert = (folder / f"{kind}-{what}.pem" for what in ("key", "cert"))
        request = self.directory / "request"
        extensions = ["-addext", f"subjectAltName={alternatives}"] if alternatives else []
        secret = ["-passout", f"pass:{password}"] if password else ["-nodes"]
        _openssl(self.directory, "req", *key, *secret, "-utf8", "-subj", f"/CN={name}", *extensions,
                 "-keyout", str(secret_key), "-out", str(request))  # fmt: skip
        self._ca("-in", str(request), "-out", str(cert), "-notext", *_dates(valid))
        return folder

    def revoke(self, cert: Path) -> Path:
        """A list of revoked certificates, with this one on it."""
        self._ca("-revoke", str(cert))
        self._ca("-gencrl", "-out", "ca-crl.pem")
        return self.directory / "ca-crl.pem"

    def _ca(self, *args: str) -> None:
        _openssl(self.directory, "ca", "-batch", "-config", "config", *args)


def self_signed(folder: Path) -> Path:
    """A self-signed certificate of a server; the folder."""
    folder.mkdir()
    _openssl(folder, "req", "-x509", *_KEY, "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", f"subjectAltName={LOCAL}", "-keyout", "server-key.pem", "-out", "server-cert.pem")  # fmt: skip
    shutil.copy(folder / "server-cert.pem", folder / "ca-cert.pem")
    return folder


def _dates(valid: tuple[str, str] | None) -> list[str]:
    return ["-startdate", valid[0], "-enddate", valid[1]] if valid else []


def _openssl(directory: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=directory, check=True, capture_output=True)
