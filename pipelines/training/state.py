"""The state of an unfinished training run, in one file. A run that goes on from it ends as if it had never stopped.

It is a safetensors file. Its tensors are `weight.<name>`, `optimiser.<number>.<name>` and `generator`; its metadata
`step`, `identity` (JSON) and `scale` (JSON).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.errors import RequestError
from pipelines.home.files import open_regular, write_atomically
from pipelines.home.plain import read_json, reading

_GENERATOR = "generator"


@dataclass(frozen=True)
class Identity:
    """What must be the same for a run to go on: all that the result depends on, besides the state itself.

    picture: the hash of the pictures. prompt: their captions, one a line. model: its name. blocks: what is trained.
    """

    picture: str
    prompt: str
    model: str
    blocks: tuple[str, ...]
    recipe: Mapping[str, object]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """The fields in which a stored identity differs. The number of steps, the intervals and gradient checkpointing
        may differ. other: as `to_dict` gives it."""
        free = {"steps", "checkpoint_every", "sample_every", "gradient_checkpointing"}
        mine = {name: value for name, value in self.recipe.items() if name not in free}
        theirs = {name: value for name, value in dict(other.get("recipe", {})).items() if name not in free}
        found = [name for name in ("picture", "prompt", "model") if getattr(self, name) != other.get(name)]
        found += ["blocks"] if list(self.blocks) != list(other.get("blocks", [])) else []
        return found + sorted(name for name in mine if mine[name] != theirs.get(name))

    def to_dict(self) -> dict[str, object]:
        return {
            "picture": self.picture,
            "prompt": self.prompt,
            "model": self.model,
            "blocks": list(self.blocks),
            "recipe": dict(self.recipe),
        }


def save_state(
    file: Path,
    identity: Identity,
    step: int,
    weights: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    scale: Mapping[str, float],
) -> None:
    """Write all that the next step depends on. The old state is kept until the new one is complete. Raises OSError.

    step: how many steps are done. scale: the gradient scaler's state, {} where there is none.
    """
    tensors = {f"weight.{name}": weight.detach().cpu() for name, weight in weights.items()}
    for index, moments in optimiser.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).detach().cpu()
    tensors[_GENERATOR] = generator.get_state()
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    notes = {
        "step": str(step),
        "identity": json.dumps(identity.to_dict()),
        "scale": json.dumps(dict(scale)),
    }
    write_atomically(file, lambda path: save_file(whole, path, notes))


def load_state(
    file: Path,
    identity: Identity,
    weights: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> tuple[int, dict[str, float]]:
    """Put a state back into weights, optimiser and generator, in place.

    Returns (how many steps are done, the gradient scaler's state). Raises RequestError for a file that is no state, or
    another run's.
    """
    remedy = "give a state that --resume has written, or start again without it"
    with reading(f"{file}, as the state of a training run,", RequestError, remedy):
        open_regular(file).close()
        with safetensors.safe_open(file, "pt") as opened:
            notes = opened.metadata() or {}
        step, stored = int(notes["step"]), read_json(notes["identity"], "its identity", mended=True)
        scale: dict[str, float] = read_json(notes["scale"], "its scale")
        different = identity.differences(stored)
        tensors = load_file(file)
        found = {name: tensors[f"weight.{name}"] for name in weights}
        if unlike := [name for name in weights if found[name].shape != weights[name].shape]:
            different = different or [f"the shape of {unlike[0]}"]
        if step < 0 or not isinstance(scale, dict):
            raise ValueError("its steps are no number, or its scale is no object")
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = tensor
        drawn = tensors[_GENERATOR]
    if different := identity.differences(stored):
        raise RequestError(
            f"{file} belongs to another run (it differs in {', '.join(different)}); give what that run was given, "
            "or start again without --resume"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(found[name])
    with reading(f"{file}, as the state of a training run,", RequestError, remedy):
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        generator.set_state(drawn)
    return step, scale
