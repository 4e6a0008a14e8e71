"""The order in which the files of tests begin."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: at the end one process would be left alone with it."""
    items.sort(key=lambda item: item.path.name != "test_power_loss.py")
