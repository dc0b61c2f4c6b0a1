"""The demo on a cluster: real shards on Ray, a real Valkey, a real Kafka-protocol broker, all on this machine.

Run by `make demo-cluster`. The servers come from the development environment, take free ports and end with the demo.
What it is given is handed on to `siltstone demo`.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import servers

_PARTITIONS = 16


def configuration(broker_port: int, store_port: int, key: Path) -> str:
    """Returns the configuration of a cluster of two shards over these servers."""
    store = f"redis://127.0.0.1:{store_port}"
    return f"""
[engine]
dtype = "auto"

[cluster]
is_on = true
num_shards = 2

[kafka]
brokers = "127.0.0.1:{broker_port}"
num_partitions = {_PARTITIONS}
replication_factor = 1
min_insync_replicas = 1

[redis]
address = "{store}"
num_partitions = {_PARTITIONS}

[key_store]
address = "{store}"
namespace = "keys"
num_partitions = {_PARTITIONS}

[sealing]
master_key_file = "{key}"
"""


def main() -> int:
    """Starts the servers, runs the demo and returns its exit code."""
    with tempfile.TemporaryDirectory(prefix="siltstone-demo-") as name:
        folder = Path(name)
        key = folder / "master.key"
        key.write_text(base64.b64encode(os.urandom(32)).decode(), encoding="utf-8")
        with servers.tansu(folder / "broker") as broker, servers.valkey(folder / "store") as store:
            settings = folder / "cluster.toml"
            settings.write_text(configuration(broker.port, store.port, key), encoding="utf-8")
            siltstone = Path(sys.executable).with_name("siltstone")
            return subprocess.run([siltstone, "--config", settings, "demo", *sys.argv[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
