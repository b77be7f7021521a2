"""`python -m studio.bench.kernels`: its products are well formed, and its table says what was found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipelines.engine.products.autotune import LIBRARY, Choice
from pipelines.errors import SetupError
from studio.bench.kernels import LAYERS, main, products, table


def test_its_products_run_and_are_counted() -> None:
    for product in products("tiny", tokens=6, width=16):
        operands = product.operands(torch.device("cpu"), torch.float32)
        found = operands.library()
        assert found.isfinite().all()
        assert found.numel() == 8 * 6 * product.parts * product.outputs // (2 if product.geglu else 1)
        a_layer = product.inputs * product.outputs + product.rank * (product.inputs + product.outputs)
        assert product.operations == 2 * 8 * 6 * product.parts * a_layer


def test_its_table_names_the_fastest_and_what_was_dropped() -> None:
    product = replace(LAYERS[0], name="a layer")
    text = table(product, Choice("b", {LIBRARY: 200.0, "b": 100.0}, {"c": "too large"}))
    assert text.startswith("a layer: b, 0.500 of the library's")
    assert "dropped: too large" in text


def test_without_a_gpu_it_says_what_it_needs() -> None:
    with pytest.raises(SetupError, match="CUDA device"):
        main(["--device", "cpu"])
