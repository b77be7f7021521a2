"""What the tests of pictures that are drawn together share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def no_faults(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails a test that draws pictures together where that does not work: each is then drawn by itself, and nothing
    but the log tells. The fixtures that the test is the first to use count too."""
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    assert [record.getMessage() for record in records if record.name == "pipelines.faults"] == []
