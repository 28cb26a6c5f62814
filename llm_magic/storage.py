"""The stores that the settings name, opened: on disk, in memory, or in Redis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm_magic.entries import Cache, Trouble
from llm_magic.errors import StoreError
from llm_magic.ledger import Ledger
from llm_magic.settings import LLMMagic

if TYPE_CHECKING:
    from llm_magic.meeting import Pace
    from llm_magic.stores.redis.server import Server


def open_cache(settings: LLMMagic, user: str, trouble: Trouble) -> Cache:
    """The cache that is set.

    Args:
        settings: What is set.
        user: Whose answers they are, unless they are the team's.
        trouble: Told what is worked around.
    """
    size = settings.cache_size
    if not size:
        from llm_magic.stores.memory import MemoryCache

        return MemoryCache(0)
    from llm_magic.stores.disk import DiskCache

    disk = DiskCache(_folder(settings.cache_dir, "cache"), limit=size, trouble=trouble)
    if settings.store == "disk":
        return disk
    from llm_magic.stores.redis.cache import RedisCache

    space = _space(settings, user)
    return RedisCache(_server(settings), space, ttl=settings.cache_ttl, spare=disk, trouble=trouble)


def open_ledger(
    settings: LLMMagic, *, kernel: str, user: str, run: str, trouble: Trouble
) -> Ledger:
    """The ledger that is set.

    Args:
        settings: What is set.
        kernel: The kernel's id.
        user: Whose budget it is.
        run: The run over rows on several workers; empty for none.
        trouble: Told what is worked around.

    Raises:
        StoreError: It cannot be used, and the settings are strict.
    """
    if settings.store == "disk":
        return _local_ledger(settings, kernel, user, trouble)
    from llm_magic.stores.redis.ledger import RedisLedger

    ledger = RedisLedger(
        _server(settings),
        kernel=kernel,
        user=user,
        team=settings.team,
        run=run,
        space=_space(settings, user),
        # The spare one tells it.
        trouble=trouble if settings.quota_strict else None,
    )
    if settings.quota_strict:
        return ledger
    from llm_magic.stores.spare import SpareLedger

    return SpareLedger(ledger, _local_ledger(settings, kernel, user, trouble), trouble)


def open_pace(settings: LLMMagic, user: str) -> Pace | None:
    """Where processes that ask the same server meet; None where no store is shared."""
    if settings.store == "disk":
        return None
    from llm_magic.stores.redis.pace import RedisPace

    return RedisPace(_server(settings), user=user, team=settings.team)


def _local_ledger(settings: LLMMagic, kernel: str, user: str, trouble: Trouble) -> Ledger:
    from llm_magic.stores.folder import usable_folder
    from llm_magic.stores.ledger import SqliteLedger

    path: Path | None = None
    try:
        folder, why = usable_folder(_folder(settings.ledger_dir, "ledger"), "ledger")
        path = folder / "ledger.db"
        if why:
            trouble(
                f"{why} usage is counted in {folder}, for this machine alone.",
                'Choose a local folder: %config LLMMagic.ledger_dir = "..."',
            )
    except StoreError as error:
        if settings.quota_strict:
            raise
        trouble(f"{error.args[0]} Only this kernel's own calls are counted.", error.fix)
    return SqliteLedger(path, kernel=kernel, user=user, trouble=trouble)


def _server(settings: LLMMagic) -> Server:
    from llm_magic.stores.redis.server import Server

    return Server(settings.store, settings.store_password())


def _space(settings: LLMMagic, user: str) -> str:
    """Whose answers are shared."""
    from llm_magic.stores.redis.keys import whose

    shared = settings.store_scope == "team"
    return whose(user, settings.team if shared else "")


def _folder(chosen: str, kind: str) -> Path:
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    if kind == "cache":
        return Path(platformdirs.user_cache_dir("llm_magic", appauthor=False))
    # Not beside the cache: whoever clears a cache must not clear what was spent.
    return Path(platformdirs.user_state_dir("llm_magic", appauthor=False))
