"""The target of the client: a Waybill service, or a server that speaks tus and nothing more.

Which of them answers at an address is found by OPTIONS. At a Waybill service the caller's token opens its session;
without one a session is begun, and kept for the next time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin

from app.client.accounts import Account, Accounts
from app.client.failures import AccessDenied, TransferFailed
from app.client.transport import Transport

UPLOADS: Final = "/api/ingestion/uploads"


@dataclass(frozen=True)
class Target:
    """A server to send to. `session` is what its files are known by; "" where nothing can have been sent yet."""

    base: str
    """The address below which the API lies; that of the collection itself if it is no Waybill service."""
    uploads: str
    """The collection that takes uploads."""
    is_waybill: bool
    session: str = ""
    token: str | None = None
    extensions: frozenset[str] = frozenset()

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that show the token."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def kept(self, location: str) -> str:
        """An upload's URL as it is kept: below the collection, so that it outlives another address of the server."""
        return urljoin(f"{self.uploads}/", location).removeprefix(f"{self.uploads}/")

    def upload(self, kept: str) -> str:
        """The URL of an upload, as `kept` wrote it down, or as a Location says it."""
        return urljoin(f"{self.uploads}/", kept)


async def find_target(transport: Transport, url: str) -> Target:
    """Ask what is at an address; raises TransferFailed if nothing there takes uploads."""
    base = url.removesuffix(UPLOADS)
    reply = await transport.ask("OPTIONS", base + UPLOADS, {})
    if "Waybill-Limits" in reply.headers:
        return Target(base, base + UPLOADS, is_waybill=True)
    reply = await transport.ask("OPTIONS", url, {"Tus-Resumable": "1.0.0"})
    if "1.0.0" in reply.headers.get("Tus-Version", reply.headers.get("Tus-Resumable", "")):
        extensions = frozenset(reply.headers.get("Tus-Extension", "").replace(" ", "").split(","))
        return Target(url, url, is_waybill=False, session=f"tus {url}", extensions=extensions)
    moved = f", which sends on to {reply.headers['Location']}" if "Location" in reply.headers else ""
    raise TransferFailed("no_service", f"neither Waybill nor a tus server is at {url}{moved} (status {reply.status})")


async def signed_in(
    transport: Transport, target: Target, accounts: Accounts, *, token: str | None, begin: bool
) -> Target:
    """The target with the caller's session: by `token`, by the account that is kept, or by a new one if `begin`.

    Raises AccessDenied if the token opens none, or there is none and none may be begun.
    """
    if not target.is_waybill:
        return _with(target, token, target.session)
    if token is not None:
        return _with(target, token, (await session_of(transport, target, token))["id"])
    account = accounts.find(target.base)
    if account is None and begin:
        with accounts.alone():
            account = accounts.find(target.base)
            if account is None:
                account = await begin_session(transport, target)
                accounts.keep(target.base, account)
    if account is None:
        return target
    return _with(target, account.token, (await session_of(transport, target, account.token))["id"])


def _with(target: Target, token: str | None, session: str) -> Target:
    return Target(target.base, target.uploads, target.is_waybill, session, token, target.extensions)


async def begin_session(transport: Transport, target: Target) -> Account:
    """Begin a session at a Waybill service."""
    reply = await transport.ask("POST", f"{target.base}/api/session", {"Waybill-Token": "true"})
    if reply.status != 200:
        raise reply.refused()
    return Account(reply.json()["token"], reply.json()["id"])


async def session_of(transport: Transport, target: Target, token: str) -> dict[str, Any]:
    """Return what the service says of the session that a token opens; raises AccessDenied if it opens none."""
    reply = await transport.ask("GET", f"{target.base}/api/session", {"Authorization": f"Bearer {token}"})
    if reply.status == 200:
        found: dict[str, Any] = reply.json()
        return found
    if reply.status == 401:
        raise AccessDenied(f"the token opens no session at {target.base}: {reply.detail}")
    raise reply.refused()


async def join(transport: Transport, target: Target, code: str) -> Account:
    """Join the session that a one-time code is of. A lost answer is asked for again by the token that asked first."""
    first = await begin_session(transport, target)
    reply = await transport.ask(
        "POST",
        f"{target.base}/api/session/join",
        {"Authorization": f"Bearer {first.token}", "Content-Type": "application/json"},
        b'{"code": "%s"}' % code.strip().upper().encode("ascii", "replace").replace(b'"', b"?").replace(b"\\", b"?"),
    )
    if reply.status != 200:
        raise reply.refused()
    return Account(reply.json()["token"], reply.json()["id"])
