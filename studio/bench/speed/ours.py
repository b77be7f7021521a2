"""How the studio runs the rows: all in one call, every row with its own adapters, in one of the engine's forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.engine.bank import Bank, FormChoice
from pipelines.family import Cut
from pipelines.features import captured, shallow_modules, shallow_pass
from studio.bench.speed.bed import Bed, Inputs
from studio.bench.speed.workload import Row

FORMS: tuple[FormChoice, ...] = ("auto", "lane-packed", "pool")


class Ours:
    """The bed's model and adapters in a bank of one form."""

    def __init__(self, bed: Bed, form: FormChoice, cut: Cut) -> None:
        self.unet = bed.twin()
        self.bank = Bank({"unet": self.unet}, form)
        self.bank.to(bed.device)
        for adapter in bed.adapters.values():
            self.bank.load(adapter)
        self._cut: Cut = cut

    def run(self, steps: Sequence[Sequence[Row]], inputs: Inputs) -> Callable[[], Tensor]:
        """The steps in turn; gives the last one's predictions, [rows, channels, h, w]."""
        features: dict[object, Tensor] = {}
        work = [(rows, *self._parts(rows, inputs)) for rows in steps]

        def run() -> Tensor:
            for rows, full, shallow in work:
                found = self._step(rows, full, shallow, features)
            return found

        return run

    def _parts(self, rows: Sequence[Row], inputs: Inputs) -> tuple[Any, Any]:
        """Which rows run in full and which shallow, with their arguments."""
        parts = []
        for shallow in (False, True):
            places = [place for place, row in enumerate(rows) if row.shallow == shallow]
            parts.append((places, inputs.of([rows[place] for place in places])))
        return parts[0], parts[1]

    def _step(self, rows: Sequence[Row], full: Any, shallow: Any, features: dict[object, Tensor]) -> Tensor:
        places, arguments = full
        predictions = [self._full([rows[place] for place in places], arguments, features)] if places else []
        if shallow[0]:
            predictions.append(
                self._shallow([rows[place] for place in shallow[0]], dict(shallow[1]), features)
            )
        if len(predictions) == 1:
            return predictions[0]
        order = torch.tensor(places + shallow[0], device=predictions[0].device).argsort()
        return torch.cat(predictions)[order]

    def _full(self, rows: Sequence[Row], arguments: Any, features: dict[object, Tensor]) -> Tensor:
        kept = [(place, row) for place, row in enumerate(rows) if row.kept]
        with (
            self.bank.active("unet", [row.uses for row in rows]),
            captured(self.unet, [self._cut] if kept else []) as found,
        ):
            prediction: Tensor = self.unet(**arguments, return_dict=False)[0]
        for place, row in kept:
            features[row.memory, row.negative] = found[self._cut][place].clone()
        return prediction

    def _shallow(
        self, rows: Sequence[Row], arguments: dict[str, Any], features: dict[object, Tensor]
    ) -> Tensor:
        deep = torch.stack([features[row.memory, row.negative] for row in rows])
        modules = shallow_modules(self.unet, self._cut)
        with self.bank.active("unet", [row.uses for row in rows], modules):
            return shallow_pass(
                self.unet,
                self._cut,
                deep,
                arguments.pop("sample"),
                arguments.pop("timestep"),
                **arguments,
            )
