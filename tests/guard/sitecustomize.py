"""No test leaves the machine: every Python process of a test run refuses other addresses.

On PYTHONPATH of the test run and so of the kernels it starts. An audit hook sees every socket,
whichever library opens it, and cannot be taken away again.
"""

import ipaddress
import sys


def _is_local(host: object) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        name = host.decode() if isinstance(host, bytes) else str(host)
        return ipaddress.ip_address(name).is_loopback or name in ("0.0.0.0", "::")
    except ValueError:
        return False


def _refuse_the_world(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
    elif event == "socket.getaddrinfo":
        address = arguments[:2]
    else:
        return
    # Unix sockets have a path for an address, and stay on the machine.
    if isinstance(address, tuple) and not _is_local(address[0]):
        raise PermissionError(f"tests stay on this machine, but something asked for {address!r}")


sys.addaudithook(_refuse_the_world)
