"""A server as a process: it says where it listens, holds its home alone, and stops without dropping an answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from server_process import echo_server

from siltstone.config import SiltstoneConfig, load_config
from siltstone.errors import Unavailable
from siltstone.ports import ShardHost
from siltstone.values import AnswerEnd, GenerateRequest, Message, Role, UserKey
from siltstone_services.client import SiltstoneClient
from siltstone_services.home import Holder, NoServer, exclusive, find_server, holder_of
from siltstone_services.serve import serve

ASKED = GenerateRequest(UserKey("office", "ada"), (Message(Role.USER, "word " * 60),))


def test_a_server_is_found_by_its_home_and_holds_it_alone(tmp_path: Path) -> None:
    with echo_server(tmp_path) as (process, address):
        found = find_server(tmp_path)
        assert (found.address, found.pid) == (address, process.pid)
        with pytest.raises(Unavailable, match=f"process {process.pid} uses it"), exclusive(tmp_path):
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_running_answer_end(tmp_path: Path, number: signal.Signals) -> None:
    with echo_server(tmp_path, pause_s=0.02) as (process, address):
        async with SiltstoneClient(address) as client:
            items = client.generate(ASKED)
            await anext(items)
            process.send_signal(number)
            rest = [item async for item in items]
            assert isinstance(rest[-1], AnswerEnd)
            assert rest[-1].num_answer_tokens == 60
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "stopped\n"
        with pytest.raises(NoServer):
            find_server(tmp_path)
        with exclusive(tmp_path):
            pass


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with echo_server(tmp_path, pause_s=0.2) as (process, address):
        async with SiltstoneClient(address) as client:
            items = client.generate(ASKED)
            await anext(items)
            process.send_signal(signal.SIGTERM)
            while (tmp_path / "up.json").exists():
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(Unavailable):
                [item async for item in items]
        assert process.wait(30) == -signal.SIGTERM


async def test_a_taken_port_is_told_before_anything_is_opened() -> None:
    def open_host(_: SiltstoneConfig) -> AbstractAsyncContextManager[ShardHost]:
        raise AssertionError("of a cluster, this takes every partition over")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = load_config(overrides={"gateway.port": port}, environment={})
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port} is unavailable: it is in use"):
            await serve(config, open_host, print)


def test_a_killed_server_is_not_found_and_leaves_its_home_free(tmp_path: Path) -> None:
    with echo_server(tmp_path) as (process, _):
        process.kill()
        process.wait()
        assert (tmp_path / "up.json").exists()
        with pytest.raises(NoServer, match="none runs"):
            find_server(tmp_path)
        with exclusive(tmp_path):
            pass


def test_a_server_that_does_not_listen_yet_is_starting_and_not_missing(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"address": "x", "pid": 2**22 + 1}))
    with exclusive(tmp_path):
        told = f"process {os.getpid()} holds .* and does not listen: it is starting"
        with pytest.raises(Unavailable, match=told) as starting:
            find_server(tmp_path)
        assert not isinstance(starting.value, NoServer)
    with pytest.raises(NoServer):
        find_server(tmp_path)


def test_a_night_that_holds_a_home_is_no_server_that_is_starting(tmp_path: Path) -> None:
    with exclusive(tmp_path, is_night=True) as hold:
        hold.use("ab" * 32)
        assert holder_of(tmp_path) == Holder(str(os.getpid()), "ab" * 32, is_night=True)
        with pytest.raises(NoServer, match="none runs"):
            find_server(tmp_path)
        with pytest.raises(Unavailable, match="memories sleep in it"), exclusive(tmp_path):
            pass


def test_a_home_tells_who_holds_it_and_which_core_is_used(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    with exclusive(tmp_path) as hold:
        assert holder_of(tmp_path) == Holder(str(os.getpid()), "")
        hold.use("ab" * 32)
        assert holder_of(tmp_path) == Holder(str(os.getpid()), "ab" * 32)
        hold.use("")
        assert holder_of(tmp_path) == Holder(str(os.getpid()), "")
    assert holder_of(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"address": "x"}', '{"address": "x", "pid": "y"}'])
def test_a_file_that_tells_nothing_is_no_server(tmp_path: Path, text: str) -> None:
    (tmp_path / "up.json").write_text(text)
    with pytest.raises(NoServer):
        find_server(tmp_path)
    (tmp_path / "up.json").write_text(json.dumps({"address": "x", "pid": os.getpid()}))
    assert find_server(tmp_path).address == "x"


def test_a_home_is_free_again_after_use(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive(tmp_path / "deep" / "home"):
            assert (tmp_path / "deep" / "home").stat().st_mode & 0o777 == 0o700
