"""Where MLflow keeps the versions. Apart from the adapter, so that reading a configuration imports no MLflow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MlflowConfig:
    """Where MLflow keeps the mirror."""

    address: str = ""
    """A server (`http://...`) or a database; empty for a SQLite file under the home folder."""
    name: str = "siltstone-core"
    """The registered model's and the experiment's name."""
