"""The client's address and scheme, from a trusted proxy's X-Forwarded-For and -Proto, or Forwarded (RFC 7239).

A list grows at its right end, one entry a hop, and a client's own entries are at its left. So the list
is read from the right, past the trusted hops: the first untrusted one is the client.
"""

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, NamedTuple

import structlog
from starlette.types import Scope

log = structlog.stdlib.get_logger("waybill.server")

UNIX: Final = "unix"
"""The entry among trusted proxies for all that can open the service's own socket file."""
_SCHEMES: Final = {"http", "https"}
_MAX_CHARACTERS: Final = 4096
_PAIR: Final = re.compile(
    r'[ \t]*+([!#$%&\'*+.^_`|~0-9A-Za-z-]++)=([!#$%&\'*+.^_`|~0-9A-Za-z:\[\]-]++|"(?:[^"\\]|\\.)*+")[ \t]*+'
)
_ADDRESS_AND_PORT: Final = re.compile(
    r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+)(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)"
)

Address = IPv4Address | IPv6Address


class _Hop(NamedTuple):
    """One entry of a list: address and scheme of a request to a proxy; "" for one that is not stated."""

    client: str
    scheme: str


class Proxies:
    """The trusted proxies: addresses and networks, `*` for all, `unix` for a socket file."""

    def __init__(self, trusted: Sequence[str]) -> None:
        self._everyone = "*" in trusted
        self._unix = UNIX in trusted
        self._networks = [ip_network(entry) for entry in trusted if entry not in {"*", UNIX}]
        self._believes = bool(trusted)
        self._reported: set[str] = set()

    def read(self, scope: Scope) -> None:
        """Put the client's address and scheme into the scope. Unreadable headers are ignored, and logged once."""
        client = scope.get("client")
        if client is not None and client[0].startswith("::ffff:"):  # IPv4 on a socket of both kinds
            client = scope["client"] = (_plain(client[0]), client[1])
        if not self._believes or not (self._unix if client is None else self._trusts(client[0])):
            return
        hops, lists = self._hops(scope["headers"])
        # The client's position, counted from the right; the leftmost hop when all are trusted.
        at = next((at for at, hop in enumerate(reversed(hops)) if not self._trusts(hop.client)), max(0, len(hops) - 1))
        if hops and hops[-1 - at].client:
            scope["client"] = (hops[-1 - at].client, 0)
        schemes = [hop.scheme for hop in hops] if lists is None else lists
        if schemes:
            scheme = schemes[max(0, len(schemes) - 1 - at)]  # a proxy that replaces the list leaves one entry
            if scheme in _SCHEMES:
                scope["scheme"] = scheme
            elif scheme:
                self._report("scheme", scheme)

    def _trusts(self, host: str) -> bool:
        if self._everyone:
            return True
        address = _address(host)
        return address is not None and any(address in network for network in self._networks)

    def _hops(self, headers: Sequence[tuple[bytes, bytes]]) -> tuple[list[_Hop], list[str] | None]:
        """The hops, the last one last; and the schemes, where they came in a list of their own."""
        named: dict[bytes, list[str]] = {}
        for name, value in headers:
            if name == b"forwarded" or name.startswith(b"x-forwarded-"):
                named.setdefault(name, []).append(value.decode("latin-1"))
        if not named:
            return [], None
        # A proxy that does not know Forwarded passes on one that its client made up.
        if named.keys() == {b"forwarded"}:
            return self._elements(", ".join(named[b"forwarded"])), None
        clients = _listed(named.get(b"x-forwarded-for"))
        schemes = [entry.lower() for entry in _listed(named.get(b"x-forwarded-proto"))]
        return [_Hop(self._client(entry), "") for entry in clients], schemes

    def _elements(self, value: str) -> list[_Hop]:
        found: list[_Hop] = []
        for element in _split(value, ","):
            pairs: dict[str, str] = {}
            for part in _split(element, ";"):
                pair = _PAIR.fullmatch(part)
                if pair is None:
                    self._report("Forwarded", value)
                    return []
                text = pair[2]
                pairs[pair[1].lower()] = re.sub(r"\\(.)", r"\1", text[1:-1]) if text[0] == '"' else text
            client = pairs.get("for", "")
            hidden = client.lower() == "unknown" or client.startswith("_")  # RFC 7239 §6.3: the address is withheld
            found.append(_Hop("" if hidden or not client else self._client(client), pairs.get("proto", "").lower()))
        return found

    def _client(self, text: str) -> str:
        match = _ADDRESS_AND_PORT.fullmatch(text)
        host = next(filter(None, match.groups()), "") if match else ""
        if _address(host) is None:
            if text.lower() != "unknown":
                self._report("address", text)
            return ""
        return _plain(host)

    def _report(self, what: str, value: str) -> None:
        if what not in self._reported:
            self._reported.add(what)
            log.warning("forwarded field not understood", field=what, value=value[:200])


def _listed(values: list[str] | None) -> list[str]:
    if values is None:
        return []
    return [entry for entry in (part.strip(" \t") for part in ",".join(values)[-_MAX_CHARACTERS:].split(",")) if entry]


def _split(value: str, separator: str) -> Iterator[str]:
    """Split at separators outside of quotes; empty parts are left out."""
    begin, quoted, escaped = 0, False, False
    for at, character in enumerate(value[-_MAX_CHARACTERS:] + separator):
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = character == "\\", character != '"'
        elif character == '"':
            quoted = True
        elif character == separator:
            if part := value[-_MAX_CHARACTERS:][begin:at].strip(" \t"):
                yield part
            begin = at + 1


def _address(host: str) -> Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _plain(host: str) -> str:
    """The address in its canonical form; IPv4 that is mapped into IPv6 becomes IPv4."""
    return str(_address(host) or host)
