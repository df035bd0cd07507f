"""The listening sockets: bound to an address, to a socket file, or passed on by systemd."""

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from app.config import Settings
from app.errors import Unusable

_FIRST_OF_SYSTEMD: Final = 3
_SOCKET_FILE_MODE: Final = 0o660


def open_sockets(settings: Settings) -> list[socket.socket]:
    """Open and bind the sockets that the settings name, one or several; the first is the one to be shown.

    The same sockets serve any number of workers: a name is bound at each of its addresses, `::` takes
    IPv4 as well, and any other IPv6 address does not.

    Raises:
        Unusable: listening there can never work.
        OSError: the address is in use.
    """
    kind, _, name = (settings.listen or "").partition(":")
    match kind:
        case "unix":
            return [_socket_file(Path(name))]
        case "fd":
            return [_inherited(int(name))]
        case "systemd":
            return _from_systemd()
    return _addresses(settings.host, settings.port)


def shown(listening: socket.socket, host: str) -> str:
    """The socket's address for clients, as a URL if it has one."""
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    address, port = listening.getsockname()[:2]
    address = host or address
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def close_sockets(sockets: list[socket.socket]) -> None:
    """Close the sockets, and remove the socket files that were made here and are still ours."""
    for listening in sockets:
        listening.close()
    while _MADE:
        path, inode = _MADE.popitem()
        with suppress(OSError):
            if path.lstat().st_ino == inode:  # another service may listen there by now
                path.unlink()


_MADE: Final[dict[Path, int]] = {}


def _addresses(host: str, port: int) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise Unusable(f"{host} is no address of this machine: {error.strerror}") from error
    opened: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                listening = socket.socket(family, kind, protocol)
            except OSError:  # a kernel without IPv6, say; the other addresses are tried
                continue
            opened.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            if port == 0 and len(opened) > 1:  # the free port that the first one got
                address = (address[0], opened[0].getsockname()[1], *address[2:])
            try:
                listening.bind(address)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL or len(found) == 1:
                    raise
                opened.pop().close()
    except BaseException:
        for listening in opened:
            listening.close()
        raise
    if not opened:
        raise Unusable(f"{host} is no address of this machine")
    return opened


def _socket_file(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        _remove_what_was_left(path)
        before = os.umask(0o777 & ~_SOCKET_FILE_MODE)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise
        raise Unusable(f"the socket {path} cannot be made: {error.strerror or error}") from error
    except BaseException:
        listening.close()
        raise
    _MADE[path] = path.lstat().st_ino
    return listening


def _remove_what_was_left(path: Path) -> None:
    """Remove the socket file of a process that has ended; one on which a process listens stays."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Unusable(f"{path} is there and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as other:
        try:
            other.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _inherited(number: int) -> socket.socket:
    try:
        listening = socket.socket(fileno=number)
    except OSError as error:
        raise Unusable(f"descriptor {number} is no socket: {error.strerror}") from error
    if listening.type != socket.SOCK_STREAM:
        listening.detach()
        raise Unusable(f"descriptor {number} is no stream socket")
    return listening


def _from_systemd() -> list[socket.socket]:
    """The sockets that systemd has opened for this process (sd_listen_fds)."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isascii() or not count.isdigit() or count == "0":
        raise Unusable("systemd has opened no socket for this process: is it started by a .socket unit?")
    return [_inherited(_FIRST_OF_SYSTEMD + at) for at in range(int(count))]
