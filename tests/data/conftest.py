"""What the tests of TFDS share: no network, and generated archives that pass for the official ones."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest


@pytest.fixture
def no_network(monkeypatch):
    """Every download meets a closed port at once, whatever network the machine has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def register(monkeypatch):
    """Registers the checksums of the files in a folder as those that the builder of a data set expects."""

    def call(dataset: str, folder: Path) -> None:
        import tensorflow_datasets
        from tensorflow_datasets.core.download import checksums

        from bigctl.data.sources.tfds import _resolve

        _resolve(dataset)  # until its module is imported, the builder of a text set is not known to TFDS
        url_infos = tensorflow_datasets.builder_cls(dataset.partition("/")[0]).url_infos
        for url, known in list(url_infos.items()):
            if known.filename and (folder / known.filename).exists():
                info = checksums.compute_url_info(folder / known.filename)
                monkeypatch.setitem(url_infos, url, info)
                monkeypatch.setitem(checksums.get_all_url_infos(), url, info)

    return call
