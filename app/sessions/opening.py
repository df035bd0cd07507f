"""Opening a session by its token, inside the transaction that changes it."""

from typing import NamedTuple

from app.db.queryable import Transaction
from app.errors import NoSession
from app.model import Session
from app.sessions import token_records
from app.sessions.tokens import Token


class Recognised(NamedTuple):
    """A live session and the token that opened it."""

    session: Session
    token: Token
    group: int = 0
    """The index of the token's group among those given to `recognise`."""


async def opened(transaction: Transaction, token: Token, now_us: int) -> Session:
    """Find the session that a token opens now, and lock it until the transaction ends; raises NoSession.

    Every change of a session begins so: the recognised one may be a second old, and the token open another since.
    """
    session = await token_records.use(transaction, token.hash, now_us)
    if session is None:
        raise NoSession
    return session
