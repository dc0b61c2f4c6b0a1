"""Objects by name, over fsspec: bounded tries, its errors turned into ours, many at once."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from siltstone.adapters.credentials import read_secret
from siltstone.adapters.object_config import ObjectConfig
from siltstone.adapters.whole_file import flush, write_whole
from siltstone.errors import ConfigInvalid, SiltstoneError, Unavailable

T = TypeVar("T")
R = TypeVar("R")

_REFUSED_US: Final = ("PermissionDeniedError", "UnauthenticatedError", "PermissionError")
"""By name: they are the errors of a library that need not be there."""


class ObjectStore:
    """A folder of objects. Safe for the threads of a process; connects at the first call.

    A name is a path of plain words below the folder that the configuration names. Of one name there is only ever one
    content, so what is put twice is the same.
    """

    def __init__(self, config: ObjectConfig) -> None:
        """Makes the client.

        Raises: ConfigInvalid when the extra is missing, or a secret that is named is not there.
        """
        self.config = config
        parts = urlsplit(config.url)
        self._is_local = parts.scheme == "file"
        self._root = (unquote(parts.path) if self._is_local else parts.netloc + parts.path).rstrip("/")
        self._files = _file_system(parts.scheme, config)
        self._pool = ThreadPoolExecutor(config.max_at_once, thread_name_prefix="objects")
        # Apart, since what is done beside may itself do many things at once.
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="objects-beside")

    def close(self) -> None:
        """Waits for what is under way, and ends."""
        self._beside.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True)

    def put(self, name: str, content: bytes) -> None:
        """Writes an object, durably.

        Raises: Unavailable; ConfigInvalid when the store refuses us or is not there.
        """
        self._call(lambda: self._put_once(name, content))

    def get(self, name: str) -> bytes | None:
        """Returns an object's bytes; None when there is none of that name.

        Raises: as `put`.
        """

        def once() -> bytes | None:
            try:
                content: bytes = self._files.cat_file(self._at(name))
            except FileNotFoundError:
                return None
            return content

        return self._call(once)

    def delete(self, names: Iterable[str]) -> None:
        """Removes objects, those of them that are there.

        Raises: as `put`; some may be gone then. Call again.
        """
        self.each(lambda name: self._call(lambda: self._delete_once(name)), names)

    def names_in(self, folder: str) -> list[str]:
        """Returns the names in a folder, of objects and of folders in it, without the folder's own.

        Raises: as `put`.
        """

        def once() -> list[str]:
            try:
                found = self._files.ls(self._at(folder), detail=False)
            except FileNotFoundError:
                return []
            return sorted({path.rstrip("/").rpartition("/")[2] for path in found})

        return self._call(once)

    def remove_folder(self, folder: str) -> None:
        """Removes an empty folder, where there is such a thing as an empty folder."""
        if self._is_local:
            try:
                self._files.rmdir(self._at(folder))
            except OSError:
                # It is not there, or somebody has put something into it.
                return

    def each(self, do: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Does something with each item, some at once, and returns what came of it, in order.

        Items are taken when there is room for them, so that not all of them are held at once. After the first error no
        more are begun, and it is raised when those under way have ended.
        """
        results: dict[int, R] = {}
        running: dict[Future[R], int] = {}
        failed: BaseException | None = None

        def reap(until_empty: bool) -> Iterator[BaseException]:
            while running and (until_empty or len(running) >= self.config.max_at_once):
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    number = running.pop(future)
                    if (error := future.exception()) is not None:
                        yield error
                    else:
                        results[number] = future.result()

        try:
            for number, item in enumerate(items):
                running[self._pool.submit(do, item)] = number
                if (failed := next(reap(False), None)) is not None:
                    break
        finally:
            for error in reap(True):
                failed = failed or error
        if failed is not None:
            raise failed
        return [results[number] for number in sorted(results)]

    def beside(self, do: Callable[[], None]) -> None:
        """Does one thing after another beside. What it raises is lost, as is what waits when the store is closed."""
        # A store that is closed takes nothing on any more.
        with suppress(RuntimeError):
            self._beside.submit(do)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _put_once(self, name: str, content: bytes) -> None:
        if self._is_local:
            path = Path(self._at(name))
            _make_folder(path.parent)
            write_whole(path, content)
            return
        try:
            self._files.pipe_file(self._at(name), content)
        except FileNotFoundError as error:
            raise ConfigInvalid("objects", f"the store has no such place: {_first_line(error)}") from error

    def _delete_once(self, name: str) -> None:
        try:
            self._files.rm_file(self._at(name))
        except FileNotFoundError:
            return

    def _call(self, question: Callable[[], T]) -> T:
        config = self.config
        deadline_s, wait_s = time.monotonic() + config.retry_budget_s, config.backoff_s
        while True:
            try:
                return question()
            except SiltstoneError:
                raise
            except Exception as error:
                if type(error).__name__ in _REFUSED_US:
                    raise ConfigInvalid("objects", f"the store refuses us: {_first_line(error)}") from error
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise Unavailable("the object store", _first_line(error)) from error
            time.sleep(min(left_s, wait_s * random.uniform(0.5, 1.0)))
            wait_s = min(2 * wait_s, config.max_backoff_s)


def open_objects(config: ObjectConfig) -> ObjectStore | None:
    """Returns the object store of a configuration; None where it names none.

    Raises: ConfigInvalid.
    """
    return ObjectStore(config) if config.is_on else None


def _file_system(scheme: str, config: ObjectConfig) -> Any:
    try:
        import fsspec

        if scheme != "s3":
            # Nothing is to be remembered of a listing: others write too.
            return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
        from obstore.fsspec import FsspecStore
    except (ImportError, ValueError) as error:
        missing = getattr(error, "name", None) or _first_line(error)
        reason = f"expected the extra siltstone[objects], or what fsspec needs for {scheme}: {missing}"
        raise ConfigInvalid("objects", reason) from error
    secret = read_secret("objects", config.secret_key_file, config.secret_key_variable)
    named = {
        # One by one: many servers that speak the protocol cannot do it otherwise.
        "disable_bulk_delete": True,
        "access_key_id": config.access_key,
        "secret_access_key": secret,
        "region": config.region,
        "endpoint": config.endpoint,
    }
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=config.connect_timeout_s),
        "timeout": timedelta(seconds=config.answer_timeout_s),
        "allow_http": config.endpoint.startswith("http://"),
    }
    if config.ca_file:
        client["root_certificate"] = _authorities(config.ca_file)
    return FsspecStore(
        "s3",
        config={name: value for name, value in named.items() if value},
        client_options=client,
        # One place counts the tries: ours.
        retry_config={"max_retries": 0},
        skip_instance_cache=True,
    )


def _authorities(path: str) -> bytes:
    try:
        content = Path(path).expanduser().read_bytes()
        # The client would find out at its first call, and not say what is wrong.
        ssl.create_default_context(cadata=content.decode("ascii"))
    except (OSError, ValueError) as error:
        raise ConfigInvalid("objects", f"ca_file: {path}: expected a PEM file: {_first_line(error)}") from error
    return content


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, so that they are still there after a power cut."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush(folder.parent)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
