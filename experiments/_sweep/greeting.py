"""Whether a Dask scheduler listens at an address, before Dask itself connects.

Dask waits for ever for a peer that says nothing, and takes another protocol's first
bytes for the length of a message (an SSH server's for 2.82 EiB). A scheduler speaks
first: eight bytes, the number of bytes that follow.
"""

import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any

from experiments._command.config import ConfigError

_SMALL = 2**20
"""Bytes that a scheduler's greeting does not reach."""


def check_greeting(address: str, *, limit: float) -> None:
    """Connect and read the greeting; other transports than tcp and tls are left alone.

    Raises:
        ConfigError: if nobody listens within `limit` seconds, says nothing, or is no
            Dask scheduler.
    """
    from distributed.comm.addressing import parse_address, parse_host_port

    try:
        scheme, location = parse_address(address)
        if scheme not in ("tcp", "tls"):
            return
        host, port = parse_host_port(location)
        options = _tls(host) if scheme == "tls" else None
        greeting = _greeting((host, int(port)), options, time.monotonic() + limit)
    except TimeoutError as error:
        msg = f"what listens there says nothing within {limit:g} s"
        raise _none(address, msg) from error
    except (OSError, ValueError, TypeError) as error:
        raise _none(address, str(error)) from error
    if len(greeting) < 8 or int.from_bytes(greeting, "little") > _SMALL:
        raise _none(address, f"what listens there begins with {greeting!r}")


def _none(address: str, reason: str) -> ConfigError:
    return ConfigError(
        f"executor.address = {address!r}: no scheduler answers there ({reason})"
    )


def _tls(host: str) -> Mapping[str, Any]:
    """How to speak TLS, by Dask's own configuration."""
    from distributed.security import Security

    context = Security().get_connection_args("client").get("ssl_context")
    if context is None:
        msg = (
            "tls needs keys: set DASK_DISTRIBUTED__COMM__TLS__CA_FILE, "
            "…TLS__CLIENT__CERT and …TLS__CLIENT__KEY"
        )
        raise ValueError(msg)
    return {"context": context, "server_hostname": host}


def _greeting(
    place: tuple[str, int], tls: Mapping[str, Any] | None, deadline: float
) -> bytes:
    while True:
        left = deadline - time.monotonic()
        try:
            connection = socket.create_connection(place, timeout=max(left, 0.1))
            break
        except ConnectionRefusedError:  # it may be starting
            if left <= 0:
                raise
            time.sleep(0.1)
    with connection as plain:
        plain.settimeout(max(deadline - time.monotonic(), 0.1))
        if tls is None:
            return plain.recv(8, socket.MSG_WAITALL)
        context: ssl.SSLContext = tls["context"]
        with context.wrap_socket(plain, server_hostname=tls["server_hostname"]) as safe:
            return safe.recv(8)
