"""Fixtures of the tests against the loopback Hub; a module takes those it needs by assigning them to their names."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import HubClient, Publisher
from hub_family import write_run
from hub_server import HubServer

TOKEN = "hf_" + "plantedTOKENthatMUSTnotLEAK0123456"

LFS = {"HF_HUB_DISABLE_XET": "1"}
"""Makes the client upload on the LFS path instead of the Xet path."""


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three rungs; not to be changed."""
    run = tmp_path_factory.getbasetemp() / "family"  # one for all modules that take this fixture
    return run if run.exists() else write_run(run)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub."""
    with HubServer(tmp_path / "hub", token=TOKEN) as running:
        yield running


@pytest.fixture
def client(server: HubServer, tmp_path: Path) -> HubClient:
    """A client of the empty Hub."""
    return HubClient(server, tmp_path / "home")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Publisher]]:
    """A Hub and one process that publishes there; every test takes a repository of its own."""
    folder = tmp_path_factory.mktemp("workshop")
    with (
        HubServer(folder / "hub", token=TOKEN) as running,
        HubClient(running, folder / "home").publisher() as publisher,
    ):
        yield running, publisher
