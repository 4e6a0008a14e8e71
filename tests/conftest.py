"""The order in which the files of tests begin; the embedded model, made once."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: at the end one process would be left alone with it."""
    items.sort(key=lambda item: item.path.name != "test_power_loss.py")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from daemon.worker import embedded  # it takes torch, which most tests do without

    folder = tmp_path_factory.mktemp("model")
    embedded.make(folder)
    return folder
