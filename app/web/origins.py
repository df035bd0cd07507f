"""Origins: which site a request comes from, and whether that is our own."""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from app.errors import BadRequest, CrossOrigin
from app.web.exchange import Exchange

_OWN_SITES: Final = {"same-origin", "none"}
"""The values of Sec-Fetch-Site for our own pages, and for what the user has begun."""
_PAGE = re.compile(r"https?://(?:(?![?#@])[!-~]){1,500}")


def refuse_other_sites(exchange: Exchange, scheme: str, allowed: frozenset[str]) -> None:
    """Refuse changes by a page of another site with this browser's cookie."""
    headers = exchange.headers
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin in allowed or site in _OWN_SITES or (origin is None and site is None):
        return
    own = _own(exchange, scheme)
    if site == "cross-site" or (origin is not None and not same_origin(origin, own)):
        _refuse(exchange, origin, own)


def require_own_page(exchange: Exchange, scheme: str) -> None:
    """Refuse what our own page did not send, by Origin, or, of browsers without it, by Referer."""
    headers, own = exchange.headers, _own(exchange, scheme)
    sender, site = headers.get("origin", headers.get("referer", "")), headers.get("sec-fetch-site")
    if site not in _OWN_SITES and (site == "cross-site" or not same_origin(sender, own)):
        _refuse(exchange, sender, own)


def own_page(exchange: Exchange, scheme: str, url: str) -> str:
    """Check the URL of a page that is ours, as the browser sees it, which a proxy may hide from us.

    Raises:
        BadRequest: it is the URL of another page, or has more than scheme, host and path.
    """
    headers, owns = exchange.headers, [_own(exchange, scheme)]
    if headers.get("sec-fetch-site") == "same-origin":
        owns.append(headers.get("origin", ""))
    if not (_PAGE.fullmatch(url) and any(same_origin(url, own) for own in owns)):
        raise BadRequest("`page` is the http or https URL of this service's own page, without a query or a fragment")
    return url


def _refuse(exchange: Exchange, origin: str | None, own: str) -> None:
    exchange.notes.update(origin=origin, own_origin=own)  # shows an operator that a proxy changes the Host
    raise CrossOrigin


def _own(exchange: Exchange, scheme: str) -> str:
    """The service's own origin as its client names it."""
    return f"{scheme}://{exchange.headers.get('host', '')}"


def same_origin(url: str, own: str) -> bool:
    """Whether two URLs have one origin; a port that its scheme implies is no difference."""
    try:
        left, right = urlsplit(url), urlsplit(own)
        return left.hostname is not None and _origin(left) == _origin(right)
    except ValueError:
        return False


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
