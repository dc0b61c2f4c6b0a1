"""Finds and removes the objects that no record points to: what crashes and lost answers have left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from siltstone.adapters.redis_config import RedisConfig
from siltstone.adapters.redis_objects import RedisObjects
from siltstone.adapters.redis_server import RedisServer
from siltstone.errors import Corrupt
from siltstone.values import UserKey


@dataclass(slots=True)
class ObjectSweep:
    """A sweep in two looks, `look` and `remove`, with `wait_s` between them. Servers may run meanwhile.

    What is removed was not pointed to at the first look, nor at the second. A commit that was on its way at the first
    has been done by the second, or has lost its right to be; and a Redis that goes back goes back no further.
    """

    config: RedisConfig
    server: RedisServer
    objects: RedisObjects
    num_objects: int = 0
    num_removed: int = 0
    num_unsure: int = 0
    """Objects of users whose record is missing or damaged: they are left, as they may be all that there is of them."""
    _suspects: dict[int, list[str]] = field(default_factory=dict)

    @property
    def wait_s(self) -> float:
        """Seconds to wait between the end of the first look and the second."""
        return self.objects.settled_after_s

    @property
    def num_suspects(self) -> int:
        """Objects that the first look has found no record of."""
        return sum(map(len, self._suspects.values()))

    def look(self) -> Iterator[int]:
        """Looks for objects that no record points to; yields the number of every partition that is done.

        Raises: Unavailable. Corrupt when a partition is damaged: nothing of it can be told.
        """
        for partition in range(self.config.num_partitions):
            # First what is there, then what is pointed to: what comes between the two is not seen.
            listed = self.objects.listed(partition)
            pointed, unsure = self._pointed(partition)
            suspects = []
            for folder, names in listed.items():
                self.num_objects += len(names)
                if folder in unsure:
                    self.num_unsure += len(names)
                else:
                    suspects += [name for name in names if name not in pointed]
            if suspects:
                self._suspects[partition] = suspects
            yield partition

    def remove(self) -> Iterator[int]:
        """Removes those that still none points to; yields the number of every partition that is done.

        Raises: as `look`. What it has not come to is found by the next sweep.
        """
        for partition, suspects in self._suspects.items():
            pointed, unsure = self._pointed(partition)
            waste = [name for name in suspects if name not in pointed and name.rpartition("/")[0] not in unsure]
            self.objects.delete(waste)
            self.num_removed += len(waste)
            yield partition

    def _pointed(self, partition: int) -> tuple[set[str], set[str]]:
        """Returns the objects that are pointed to, and the folders of which that cannot be told."""
        keys = [f"{{{self.config.namespace}:{partition}}}:{kind}" for kind in ("part", "users")]
        answer = self.server.run("users", keys, [])
        if answer[0] != b"OK":
            raise Corrupt(f"partition {partition}", "a record with its checksum", "none, or another one")
        if int(answer[1]) != len(answer[2]):
            raise Corrupt(f"partition {partition}", f"{int(answer[1])} users", f"{len(answer[2])}")
        owners = [UserKey(*user.decode().split("/", 1)) for user in answer[2]]
        pointers = self.objects.pointers(partition, owners)
        of_unsure = [owner for owner, name in zip(owners, pointers, strict=True) if name in ("-", "?")]
        return set(pointers), {self.objects.folder_of(partition, owner) for owner in of_unsure}
