"""Why a Redis does not let us in, in one line that says which setting or ACL rule is wrong.

Owns the words for what redis-py raises; what its errors do not tell, a look at the server's door
does (door.py). No text shows a password. Called by worker/surroundings.py, worker/cli.py and the
commands.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from keyfold.worker.errors import RedisRefuses
from keyfold.worker.redis.client import connect, primaries
from keyfold.worker.redis.door import why_shut_out
from keyfold.worker.redis.url import Access

SOON_S = 1.0  # who has not answered by then is knocked at
# Redis' words for what an ACL forbids, also when a script of ours tries it.
NO_COMMAND = re.compile(r"no permissions to run the '([^']+)' command|can't run this command")
NAMED = re.compile(r"User (\S+) has no permissions")
NO_KEY = re.compile(r"no permissions to access (?:one of the keys|a key)|can't access.*key", re.I)


def why_denied(error: Exception, access: Access | None = None) -> str | None:
    """Return the line for an error of the login or of the ACL; None: it is none of these."""
    text = str(error)
    named = NAMED.search(text)
    name = named.group(1) if named else access.user if access is not None else ""
    user = repr(name) if name else "this user"
    if isinstance(error, AuthenticationError) or text.startswith(("WRONGPASS", "NOAUTH")):
        if "NOAUTH" in text or "Authentication required" in text:
            return "redis.username, redis.password: Redis asks for a login: set both"
        return (
            f"redis.username, redis.password: Redis refuses {user}: expected the name and the "
            "password of one of its ACL users (or of redis.url)"
        )
    if access is not None and "by Sentinel" in text and "username-password" in text:
        return (
            "redis.sentinel_username, redis.sentinel_password: the Sentinels refuse us: expected "
            "the name and the password of one of their users"
        )
    if "cluster support disabled" in text or "command 'SENTINEL'" in text:
        return f"redis.url: Redis refuses: {text}"
    denied = isinstance(error, NoPermissionError) or "NOPERM" in text or "ACL failure" in text
    if not denied:
        return None
    command = NO_COMMAND.search(text)
    if command is not None and command.group(1):
        name = command.group(1).lower()
        return f"redis.username: Redis' ACL forbids {user} the command {name}: ACL SETUSER +{name}"
    if NO_KEY.search(text):
        return (
            f"redis.username: Redis' ACL forbids {user} the keys of this group: ACL SETUSER with "
            "~{GROUP:* and ~keyfold-handover:{INPUT:OUTPUT:* for kafka.group, kafka.input, output"
        )
    return f"redis.username: Redis' ACL forbids {user}: {text}"


async def check_redis(access: Access, timeout_s: float) -> None:
    """Ask Redis once whether it lets us in; one that is away is waited for later.

    Who does not answer soon is knocked at meanwhile: a client that speaks TLS to a server without
    it, or the other way round, waits in silence. Raises RedisRefuses when a setting or an ACL has
    to be another one first.
    """
    asked = asyncio.ensure_future(_ask_once(access, timeout_s))
    answered, _ = await asyncio.wait({asked}, timeout=SOON_S)
    why = None if answered else await asyncio.to_thread(why_shut_out, access)
    if why is not None:
        asked.cancel()
        with suppress(asyncio.CancelledError, RedisError, OSError):
            await asked
        raise RedisRefuses(why)
    try:
        await asked
    except (RedisError, OSError) as error:
        why = why_denied(error, access)
        if why is None and answered:
            why = await asyncio.to_thread(why_shut_out, access)
        if why is not None:
            raise RedisRefuses(why) from error


async def _ask_once(access: Access, timeout_s: float) -> None:
    client = connect(access, timeout_s)
    try:
        for server in await primaries(client):
            await server.info("memory")
    finally:
        await client.aclose()


def explain(error: RedisError | OSError, access: Access) -> str:
    """Return the best line for an error of a command that looked once."""
    denied = why_denied(error, access)
    if denied is not None:
        return denied
    return why_shut_out(access) or f"Redis at {access}: {error}"
