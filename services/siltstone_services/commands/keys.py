"""Changes the master key that users' keys are wrapped by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from siltstone.config import SiltstoneConfig
from siltstone.errors import ConfigInvalid, NotFound
from siltstone.ports import KeyVault
from siltstone_services.cli.options import Settings
from siltstone_services.commands.configuration import load
from siltstone_services.commands.screen import err, out


def rotate(settings: Settings) -> None:
    """Wraps by the configured master key what the previous one has wrapped, and says how much that was."""
    num_looked_at = num_anew = 0
    with _vault(load(settings)) as vault, err().status("wrapping users' keys ...") as status:
        for looked_at, anew in vault.rewrap():
            num_looked_at, num_anew = num_looked_at + looked_at, num_anew + anew
            status.update(f"wrapping users' keys ... {num_looked_at:,} looked at, {num_anew:,} wrapped anew")
    told = f"{num_looked_at:,} looked at, {num_anew:,} wrapped anew; the previous master key is not needed any more"
    out().print(told, soft_wrap=True)


@contextmanager
def _vault(config: SiltstoneConfig) -> Iterator[KeyVault]:
    if not config.sealing.is_on:
        raise ConfigInvalid("sealing", "expected a master key, found none named: nothing is encrypted")
    try:
        # Not among what every installation has: an extra brings it.
        from siltstone.adapters.master_key import open_master_key
        from siltstone.adapters.redis_key_vault import RedisKeyVault
        from siltstone.adapters.sqlite_key_vault import SqliteKeyVault
    except ModuleNotFoundError as error:
        raise ConfigInvalid("sealing", f"expected the extra siltstone[cluster]: {error.name} is missing") from error
    master = open_master_key(config.sealing)
    if config.cluster.is_on:
        with RedisKeyVault(config.key_store, master) as vault:
            yield vault
        return
    path = config.home_path / "keys" / "users.db"
    if not path.exists():
        raise NotFound("key vault", str(path))
    with SqliteKeyVault(path, master, config.store.busy_timeout_ms) as embedded:
        yield embedded
