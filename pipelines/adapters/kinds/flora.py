"""FLoRA: low-rank factors that multiply the base weight element by element instead of being added to it.

Wen and Chaudhuri 2024, "Batched Low-Rank Adaptation of Foundation Models" (arXiv 2312.05677, ICLR 2024). With the
paper's W0 [in, out], B [in, rank] and A [rank, out], for one sample X [tokens, in]:

    W = W0 * (B A)                          (equation 4; * is the element-wise product)
    Y = sum_r A_r * ((B_r * X) W0)          (equation 5: one product with the shared W0 per rank)

The two are equal because the rank is summed over. The paper's text proposes a mean, which is 1 / rank of the sum. An
ordinary LoRA, W0 + BA, is no FLoRA and cannot be made one: that takes BA = 1 + dW / W0, which has full rank.

The file format is ours, a safetensors file:

    unet.<layer>.flora_in.weight     [rank, in]    the rows B_r, which multiply the layer's input
    unet.<layer>.flora_out.weight    [out, rank]   the columns A_r, which multiply its output
    text_encoder.<layer>. …          likewise; all other prefixes and block names that LoRA files use are read too
    metadata  flora.version = "1";  flora.reduction = "sum" (also where it is missing) or "mean"

There is no alpha. The halves are not called A and B, because these mean opposite sides in the LoRA and the FLoRA paper.
A layer may be a convolution; the factors then have no kernel, and every tap is multiplied alike (this is ours, not the
paper's). In an untrained adapter the product of flora_in and flora_out is 1 everywhere. One file may hold FLoRA for
some layers and LoRA for others.

Strength s interpolates from the base weight, as for DoRA: W0 + s (W0 * (BA) - W0). s = 1 gives equation 4. The changes
that several adapters, of any type, make to one layer add up.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.adapters.kinds.kind import AdapterKind, Leaf, RawLayer
from pipelines.adapters.terms import Hadamard, Target
from pipelines.errors import AdapterFormatError, AdapterMismatchError

METADATA: Mapping[str, str] = {"flora.version": "1", "flora.reduction": "sum"}
"""The metadata that a file of this type carries."""

_LEAVES = {
    f"flora_{end}.weight": Leaf(part, "", naming="FLoRA") for end, part in (("in", "inner"), ("out", "outer"))
}


class Flora(AdapterKind):
    """True FLoRA."""

    name = "FLoRA"
    leaves = _LEAVES
    input_axes: Mapping[str, int] = {"inner": 1}
    output_axes: Mapping[str, int] = {"outer": 0}
    terms = "the base weight times low-rank factors"
    needs_base = True

    def check_metadata(self, file: str, metadata: Mapping[str, str]) -> None:
        mean_of(file, metadata)

    def read(self, layer: RawLayer, target: Target) -> Hadamard:
        for half, other in (("inner", "outer"), ("outer", "inner")):
            if half not in layer.parts:
                raise AdapterFormatError(
                    f"{layer.file}: {layer.keys[other]!r} has no matching {half} half, so the file is incomplete; "
                    "fetch it again"
                )
        if stray := [key for part, key in layer.keys.items() if part not in ("inner", "outer")]:
            raise AdapterFormatError(
                f"{layer.file}: {stray[0]!r} stands beside FLoRA's factors of the same layer, where it has no "
                "meaning; remove it"
            )
        inner, outer = layer.parts["inner"], layer.parts["outer"]
        rank = int(inner.shape[0]) if inner.ndim else 0
        out_width, in_width = target.shape[:2]
        if rank == 0:
            raise AdapterFormatError(
                f"{layer.file}: {layer.keys['inner']!r} has rank 0, so it holds nothing; fetch a whole file"
            )
        if tuple(inner.shape) != (rank, in_width) or tuple(outer.shape) != (out_width, rank):
            shapes = " and ".join(
                f"{layer.keys[part]!r} {list(layer.parts[part].shape)}" for part in layer.parts
            )
            raise AdapterMismatchError(
                f"{layer.file}: {shapes} do not fit {layer.name} {list(target.shape)} of this model; "
                "the file was made for a model of other sizes, load it with that one"
            )
        return Hadamard(inner, outer, 1 / rank if mean_of(layer.file, layer.metadata) else 1.0)


def mean_of(file: str, metadata: Mapping[str, str]) -> bool:
    """Whether the file wants the mean over the rank instead of the sum. Raises AdapterFormatError for an unknown
    version or reduction."""
    for name, known in (("flora.version", ("1",)), ("flora.reduction", ("sum", "mean"))):
        said = metadata.get(name, known[0])
        if said not in known:
            raise AdapterFormatError(
                f"{file}: its {name} is {said!r}; known are {' and '.join(known)}: convert it, or fetch another edition"
            )
    return metadata.get("flora.reduction") == "mean"
