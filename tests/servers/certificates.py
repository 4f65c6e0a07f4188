"""A certificate authority and a server's certificate for 127.0.0.1 and localhost, made with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

_EXTENSIONS = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"


def make(directory: Path) -> Path:
    """`ca-cert.pem`, `server-cert.pem` and `server-key.pem`, as nbdkit names them; the directory."""
    directory.mkdir(exist_ok=True)
    _openssl(directory, "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
             " -subj /CN=test-ca -keyout ca-key.pem -out ca-cert.pem")  # fmt: skip
    _openssl(directory, "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
             " -subj /CN=localhost -keyout server-key.pem -out server.csr")  # fmt: skip
    (directory / "extensions").write_text(_EXTENSIONS)
    _openssl(directory, "x509 -req -in server.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2"
             " -extfile extensions -out server-cert.pem")  # fmt: skip
    return directory


def _openssl(directory: Path, args: str) -> None:
    subprocess.run(["openssl", *args.split()], cwd=directory, check=True, capture_output=True)
