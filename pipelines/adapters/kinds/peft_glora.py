"""GLoRA as PEFT writes it: W' = W * (1 + A) + B, and the bias becomes b * (1 + D) + E + W C.

Chavan et al. 2023 (arXiv 2306.07967); another layout and other mathematics than LyCORIS'. Each of A to E is the
product of two factors (`glora_A.Xd` [.., rank], `glora_A.Xu` [rank, ..]), a vector or a number (`glora_A.X`), or absent
(`glora_A.zeros`). What would change a bias has no effect on a layer without one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, smaller, whole
from pipelines.adapters.terms import Hadamard, LayerFactors, Shift, Target, Term, Whole, together

LETTERS = "ABCDE"


class PeftGlora(AdapterKind):
    """PEFT's GLoRA."""

    name = "PEFT's GLoRA"
    leaves = peft_leaves(
        *(f"glora_{letter}.{end}" for letter in LETTERS for end in ("X", "Xd", "Xu", "zeros"))
    )
    peft_types = ("GLORA",)
    terms = "the base weight times low-rank factors, low rank, and biases"
    needs_base = True

    def read(self, layer: RawLayer, target: Target) -> LayerFactors:
        if target.kernel > 1:
            raise misfit(layer, target, *layer.parts)
        out, width = target.shape[:2]
        weight = target.weight().view(out, width)
        for part, value in layer.parts.items():
            if part.endswith(".zeros") and value.any():
                raise misfit(layer, target, part)
        terms: list[Term] = []
        times = self._path(layer, target, "A", (out, width))
        if times is not None:
            up, down = times
            one, each = torch.ones(1, width), torch.ones(out, 1)
            terms.append(Hadamard(torch.cat([one, down]), torch.cat([each, up], dim=1)))
        plus = self._path(layer, target, "B", (out, width))
        if plus is not None:
            terms.append(smaller(plus[1].contiguous(), plus[0].contiguous(), 1.0, target))
        shift = torch.zeros(out)
        for letter, shape in (("C", (width, 1)), ("D", (out, 1)), ("E", (out, 1))):
            path = self._path(layer, target, letter, shape)
            if path is not None:
                value = (path[0] @ path[1]).expand(shape)
                own = (
                    weight @ value
                    if letter == "C"
                    else target.shift()[:, None] * value
                    if letter == "D"
                    else value
                )
                shift = shift + own[:, 0]
        if shift.any() and target.has_bias:
            terms.append(Shift(shift))
        return together(terms or [Whole(torch.zeros(target.shape))])

    def _path(
        self, layer: RawLayer, target: Target, letter: str, shape: tuple[int, int]
    ) -> tuple[Tensor, Tensor] | None:
        """(up [rows, rank], down [rank, columns]) of one of A to E; None where it is absent. Raises AdapterError."""
        start = f"glora_{letter}."
        if f"{start}X" in layer.parts:
            value = whole(layer, f"{start}X")[0].flatten()
            if len(value) not in (1, shape[0]):
                raise misfit(layer, target, f"{start}X")
            return value.view(-1, 1).expand(shape[0], 1), torch.ones(1, shape[1])
        if not layer.parts.keys() & {f"{start}Xd", f"{start}Xu"}:
            return None
        up, down = whole(layer, f"{start}Xd", f"{start}Xu")
        if up.ndim != 2 or tuple(down.shape) != (up.shape[1], shape[1]) or len(up) != shape[0]:
            raise misfit(layer, target, f"{start}Xd", f"{start}Xu")
        return up, down
