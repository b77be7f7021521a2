"""How the studio runs the rows: by calls of the engine, in which every row has its own adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelines.adapters import Adapter
from pipelines.denoise import steady
from pipelines.engine.engine import Engine
from pipelines.engine.residency.bank import Bank, FormChoice
from pipelines.engine.unet_call import UNetCall
from pipelines.families.family import Cut
from pipelines.families.unet import cuts_of
from studio.bench.speed.bed import Bed, Inputs
from studio.bench.speed.rivals import RUN_STEPS, Mode
from studio.bench.speed.workload import WorkloadRow

CALLS_TO_WARM = 3
"""Of a size, the engine's first call sets up libraries, the second records, and the third replays."""


@dataclass(frozen=True)
class _Part:
    """Rows of one step that run in one call, in full or shallow. places: where they stand among the step's rows."""

    places: tuple[int, ...]
    rows: tuple[WorkloadRow, ...]
    call: UNetCall


class Ours:
    """An engine over the bed's weights. adapters: those that it holds; by default all of the bed's."""

    def __init__(
        self, bed: Bed, form: FormChoice, mode: Mode, adapters: Iterable[Adapter] | None = None
    ) -> None:
        unet = bed.twin()
        self.bank = Bank({"unet": unet}, form)
        self.bank.to(bed.device)
        for adapter in bed.adapters.values() if adapters is None else adapters:
            self.bank.load(adapter)
        self.engine = Engine(unet, self.bank)
        self.engine.optimize(
            graphs=mode != "eager", compile=mode in ("compiled", "kernels"), kernels=mode == "kernels"
        )
        self._cut: Cut = cuts_of(unet.config, "deep")[0]

    @property
    def note(self) -> str:
        """Why calls ran otherwise than asked, and which forms were chosen; "" where there is nothing to say."""
        stages = self.engine.stages[-1:] if self.bank.form == "auto" else ()
        forms = [f"{own.kind} {own.form}" for stage in stages for own in stage.bucket.forms]
        return "; ".join([*self.engine.stats.notes, *forms])

    def run(self, steps: Sequence[Sequence[WorkloadRow]], inputs: Inputs) -> Callable[[], Tensor]:
        """A function that runs the steps in order and returns the last one's predictions, [rows, channels, h, w]. A
        single step counts as one of a run in which nothing changes."""
        work = []
        for index, rows in enumerate(steps):
            parts = []
            for shallow in sorted({row.shallow for row in rows}):
                uses = [[row.uses for row in each if row.shallow == shallow] for each in steps]
                lasting = RUN_STEPS if len(steps) == 1 else steady(uses, index)
                parts.append(self._part(rows, shallow, inputs, lasting))
            work.append(parts)
        features: dict[object, Tensor] = {}

        def run() -> Tensor:
            for parts in work:
                found = self._step(parts, features)
            return found

        return run

    def _part(self, rows: Sequence[WorkloadRow], shallow: bool, inputs: Inputs, steady: int) -> _Part:
        places = tuple(place for place, row in enumerate(rows) if row.shallow == shallow)
        mine = tuple(rows[place] for place in places)
        call = replace(
            inputs.call(mine),
            steady=steady,
            cut=self._cut if shallow else None,
            leaves=(self._cut,) if any(row.kept for row in mine) else (),
        )
        return _Part(places, mine, call)

    def _step(self, parts: Sequence[_Part], features: dict[object, Tensor]) -> Tensor:
        predictions = [self._predict(part, features) for part in parts]
        if len(parts) == 1:
            return predictions[0]
        order = torch.tensor([place for part in parts for place in part.places])
        return torch.cat(predictions)[order.argsort().to(predictions[0].device)]

    def _predict(self, part: _Part, features: dict[object, Tensor]) -> Tensor:
        call = part.call
        if call.cut:
            call = replace(call, deep=torch.stack([features[row.memory] for row in part.rows]))
        found = self.engine.run(call)
        for place, row in enumerate(part.rows):
            if row.kept:
                features[row.memory] = found.features[self._cut][place].clone()
        return found.prediction
