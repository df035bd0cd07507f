"""PostgreSQL's URLs, as its own tools write them: one host, a socket's directory, or several hosts to choose from."""

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote

SSL_MODES: Final = ("true", "false", "disable", "allow", "prefer", "require", "verify-ca", "verify-full")
EXAMPLE: Final = "postgresql://user:password@host/database"
_OPTIONS: Final = {"host", "port", "ssl", "target_session_attrs"}
_TARGETS: Final = ("read-write", "primary")
_PORT: Final = 5432
_HOST: Final = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:/@]*))(?::(?P<port>[0-9]{1,5}))?")


class MalformedUrl(ValueError):
    """The text is no URL at all."""

    def __init__(self) -> None:
        super().__init__("is not a well-formed URL, expected / ? @ % in a password as %2F %3F %40 %25")


class PostgresqlUrl(NamedTuple):
    """The parts of a URL. A host that begins with a slash is the directory of a socket."""

    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None
    database: str
    ssl: str | None
    target: str | None
    """The kind of server to choose: read-write or primary; None for any."""


def parse(url: str) -> PostgresqlUrl:
    """Take the URL apart.

    Raises:
        MalformedUrl: the text is no URL.
        ValueError: a part of the URL would be ignored, or means nothing. The text repeats no part of it.
    """
    match = re.fullmatch(r"postgres(?:ql)?://([^/?]*)(?:/([^?]*))?(?:\?(.*))?", url, re.DOTALL)
    if match is None:
        raise MalformedUrl
    userinfo, _, netloc = match[1].rpartition("@")
    user, _, password = userinfo.partition(":")
    named = _named(netloc)
    options = _options(match[3] or "")
    database = unquote(match[2] or "")
    hosts = _hosts(named, options)
    if not database:
        raise ValueError(f"names no database, expected {EXAMPLE}")
    target = options.get("target_session_attrs") or ("read-write" if len(hosts) > 1 else None)
    secret = unquote(password) if ":" in userinfo else None
    return PostgresqlUrl(hosts, unquote(user) or None, secret, database, options.get("ssl"), target)


def _options(query: str) -> dict[str, str]:
    options = parse_qsl(query, keep_blank_values=True)
    given = dict(options)
    if not given.keys() <= _OPTIONS or len(given) < len(options):
        raise ValueError(
            "has options that are not understood, expected ssl, host, port or target_session_attrs, each once "
            "(WAYBILL_DATABASE_POOL_SIZE bounds the pool)"
        )
    if given.get("ssl", "true") not in SSL_MODES:
        raise ValueError(f"has an ssl mode that is not understood, expected one of {', '.join(SSL_MODES)}")
    if given.get("target_session_attrs", _TARGETS[0]) not in _TARGETS:
        raise ValueError(f"has target_session_attrs that do not suit a service that writes, expected {_TARGETS[0]}")
    return given


def _named(netloc: str) -> list[tuple[str, int | None]]:
    """The hosts before the path, with their ports; a single nameless host where there are none."""
    matches = [_HOST.fullmatch(part) for part in netloc.split(",")]
    if None in matches:
        raise MalformedUrl
    return [(unquote(match["address"] or match["name"]), _port(match["port"])) for match in matches if match]


def _hosts(named: list[tuple[str, int | None]], options: dict[str, str]) -> tuple[tuple[str, int], ...]:
    if "host" in options:
        if len(named) > 1 or named[0][0]:
            raise ValueError(f"names hosts in two places, expected {EXAMPLE}, or ?host=/run/postgresql")
        ports = [_port(port) for port in options["port"].split(",")] if "port" in options else [named[0][1]]
        names = options["host"].split(",")
        if len(ports) not in {1, len(names)} or (named[0][1] and "port" in options):
            raise ValueError("has another number of ports than of hosts, expected one for each, or one for all")
        named = list(zip(names, ports * len(names) if len(ports) == 1 else ports, strict=True))
    elif "port" in options:
        raise ValueError(f"has a port without a host option, expected {EXAMPLE}")
    if not all(name for name, _ in named):
        raise ValueError(f"names no host, or an empty one, expected {EXAMPLE}")
    return tuple((name, _PORT if port is None else port) for name, port in named)


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65_536:
        raise MalformedUrl
    return int(text)
