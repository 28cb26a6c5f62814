"""What can be wrong with a Redis, in words for the user, and how each of it is mended."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from llm_magic.address import PASSWORD
from llm_magic.errors import StoreError

_SET = f"Set {PASSWORD} in the environment, and leave it out of the address"
_ELSEWHERE = '%config LLMMagic.store = "redis://HOST:6379/0"'
_DISK = 'or do without it: %config LLMMagic.store = "disk"'
_PING = "{cli} ping, " + _DISK


class Fault(NamedTuple):
    """Why something could not be done.

    Attributes:
        kind: ``"away"`` (not reached, or no answer in time), ``"loading"``, ``"refused"`` (the
            login), ``"forbidden"`` (a right is missing), ``"full"``, ``"replica"``,
            ``"elsewhere"`` (in a Cluster on a socket), ``"strange"``.
        why: What Redis does or does not do, as the second half of a sentence.
        fix: How to mend it.
        lasting: Whether another request would meet it as well, whatever it asks for.
    """

    kind: str
    why: str
    fix: str
    lasting: bool = False

    def error(self, place: str) -> StoreError:
        """The fault as an error, without the one that it was told by, which may hold a password."""
        message = f"Redis at {place} {self.why}, so nothing is stored there."
        passing = self.kind in ("away", "loading")
        return StoreError(message, fix=self.fix, kind=self.kind, passing=passing)


def kind_of(error: StoreError) -> str:
    """The kind of the fault that an error tells of; empty where it tells of none."""
    return str(vars(error).get("kind", ""))


def missing(why: str) -> StoreError:
    """The library is not there."""
    return StoreError(
        f"A Redis store is set, and the package redis cannot be loaded ({why}), so nothing is "
        "stored there.",
        fix='pip install "llm-magic[redis]", ' + _DISK,
        kind="missing",
    )


# By the first word of an error, as Redis sends it. The words of a missing right name user and
# command, or the key; none of them has a password.
_REPLIES = {
    "OOM": ("full", "is full (maxmemory)", "{cli} CONFIG SET maxmemory 2gb"),
    "READONLY": (
        "replica",
        "is a replica, which takes no writes",
        f"Name the primary: {_ELSEWHERE}",
    ),
    "LOADING": ("loading", "is still loading its data", "Wait, and run the cell again"),
    "MASTERDOWN": ("away", "is a replica without its primary", "Wait, and run the cell again"),
    "CLUSTERDOWN": ("away", "is a cluster in which a part is down", "{cli} CLUSTER INFO"),
    "MOVED": (
        "elsewhere",
        "has the key on another server of its cluster",
        f"Name it by host and port: {_ELSEWHERE}",
    ),
    "TRYAGAIN": ("away", "is moving data within its cluster", "Wait, and run the cell again"),
    "BUSY": ("away", "is busy with a script", "{cli} SCRIPT KILL"),
    "MISCONF": ("full", "takes no writes, since it cannot save its data", "Look into its log"),
    "NOREPLICAS": ("replica", "takes no writes without its replicas", "{cli} INFO replication"),
    "WRONGPASS": ("refused", "refuses user or password", _SET),
    "NOAUTH": ("refused", "wants a password", _SET),
    "DENIED": ("refused", "is protected and takes no login from elsewhere", "Set a password there"),
}
_LASTING = {"away", "loading", "refused"}
_GRANT = "{cli} ACL SETUSER {user} '~llm_magic:*' +@all -@dangerous +info"

# The library takes the first word off the errors that it has a class for.
_CODES = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
    "AskError": "MOVED",
}


def of_address(error: Exception) -> Fault:
    """The fault in an option of the address."""
    why = f"is not to be had with what is behind the ? of its address ({_short(str(error))})"
    return Fault("strange", why, f"Name it anew: {_ELSEWHERE}")


def of_error(error: Exception, words: str, patience: float, cli: str, user: str) -> Fault:
    """The fault in an error of the library or of the system.

    Args:
        error: The error.
        words: What it says, without a password.
        patience: Seconds that were waited for an answer.
        cli: The command that asks the server something.
        user: Who asks; empty for the default user.
    """
    found = _found(error, words, patience)
    user = shlex.quote(user or "default")
    return found._replace(fix=found.fix.replace("{cli}", cli).replace("{user}", user))


def _found(error: Exception, words: str, patience: float) -> Fault:
    names = {each.__name__ for each in type(error).__mro__}
    if "TimeoutError" in names or ("RedisClusterException" in names and "Timeout" in words):
        why = f"did not answer within {patience:g} s"
        return Fault("away", why, _PING, lasting=True)
    if code := next((_CODES[name] for name in _CODES if name in names), ""):
        return _reply(code)
    if names & {"AuthenticationError", "AuthorizationError"}:
        return _of_login(words)
    if names & {"ResponseError", "InvalidResponse"}:
        return _of_reply(words)
    return _away(words)


def _reply(code: str) -> Fault:
    kind, why, fix = _REPLIES[code]
    return Fault(kind, why, fix, kind in _LASTING)


def _of_reply(words: str) -> Fault:
    """The fault in an error that the server sent."""
    first = words.strip().partition(" ")[0]
    if first in _REPLIES:
        return _reply(first)
    if "no permission" in words.lower() or "can't run this command" in words:
        # In a script it says no more than that.
        said = _short(words.partition(" script:")[0])
        return Fault("forbidden", f"does not allow it ({said})", _GRANT)
    return Fault("strange", f"answers with an error ({_short(words)})", "Look into its log")


def _of_login(words: str) -> Fault:
    if "without any password" in words:
        why = "has no password, and one is set"
        return Fault("refused", why, f"Take {PASSWORD} out of the environment", lasting=True)
    # "Authentication required.", "HELLO must be called with the client already authenticated ..."
    return _reply("NOAUTH" if "required" in words or "HELLO" in words else "WRONGPASS")


def _away(why: str) -> Fault:
    """The server is not reached, or the connection broke."""
    if "CERTIFICATE_VERIFY_FAILED" in why:
        fix = "Name who vouches for it: rediss://HOST:6379/0?ssl_ca_certs=FILE"
        return Fault("away", "has a certificate that nobody vouches for", fix, lasting=True)
    # "Error 111 connecting to HOST:PORT. Connection refused."
    said = re.sub(r"^Error -?\d* ?connecting to .*?[.:] (?=\D)", "", why).strip(" .")
    return Fault("away", f"cannot be reached ({_short(said)})", _PING, lasting=True)


def _short(words: str) -> str:
    line = " ".join(words.split())
    return line if len(line) <= 160 else f"{line[:159]}…"
