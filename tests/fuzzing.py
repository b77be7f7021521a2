"""Property tests: made-up input by the hundred in CI, and by the ten thousand in the slow run."""

from __future__ import annotations

import functools
import inspect
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.configuration import set_hypothesis_home_dir

from composers.shown import shown

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # and none in the checkout


def cases(ci: int = 300, slow: int = 20_000, **strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """Makes two tests of one function, which gets values of these strategies by name: one with the same `ci` cases each
    time, and one marked slow with `slow` new ones. The slow one prints the slowest case and its time."""

    def twice(test: Callable[..., None]) -> Any:
        fixtures = [one for name, one in inspect.signature(test).parameters.items() if name not in strategies]

        def run(how_many: int, **given_by_pytest: Any) -> None:
            slowest: tuple[float, str] = (0.0, "")

            @functools.wraps(test)
            def timed(**values: Any) -> None:
                nonlocal slowest
                began = time.perf_counter()
                test(**given_by_pytest, **values)
                took = time.perf_counter() - began
                if took > slowest[0]:
                    slowest = (took, shown(values))

            del timed.__wrapped__  # type: ignore[attr-defined]
            profile = settings(
                max_examples=how_many,
                derandomize=how_many == ci,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )
            profile(given(**strategies)(timed))()
            print(f"{test.__name__}: {how_many} cases, the slowest {slowest[0]:.2f} s: {slowest[1]}")

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        number = inspect.Parameter("how_many", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = inspect.Signature([number, *fixtures])  # type: ignore[attr-defined]
        numbers = [pytest.param(ci, id="ci"), pytest.param(slow, id="slow", marks=pytest.mark.slow)]
        return pytest.mark.parametrize("how_many", numbers)(run)

    return twice
