"""The engine: UNet calls for rows with adapters of their own, recorded and replayed where that is possible.

    call -> keys and values of its texts -> a recording for its bucket, or layer by layer -> prediction and features

On the CPU, and where a call cannot be recorded, it runs layer by layer. `Stats` then tells the reason. Adapters that do
more than low-rank terms say (FLoRA, DoRA, whole differences) can be recorded only as whole weights, if these fit and
the mix stays for long enough. Changes of biases and norms are not recorded.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from composers.plan import Use
from pipelines.engine.backends import AttentionChoice, attention_by
from pipelines.engine.compiling import compile_blocks, uncompile_blocks
from pipelines.engine.planner import FEWEST_STEADY, KindPlan, Load, Planner
from pipelines.engine.products.attention import RowText, TextMemory, join_weights
from pipelines.engine.products.graphs import CudaGraphs, Recorder
from pipelines.engine.products.layers import use_kernels
from pipelines.engine.residency.bank import Bank, Mixes, grouped
from pipelines.engine.residency.packing import Ranks, Taken
from pipelines.engine.residency.table import LAYER_KINDS, LayerKind
from pipelines.engine.stage import Bucket, KindForm, Stage, room_for_rank, room_for_rows
from pipelines.engine.unet_call import UNetCall, UNetOutput, forward
from pipelines.families.family import Cut
from pipelines.families.unet import shallow_modules

MOST_STAGES = 24
"""Stages kept at once. The one that was used longest ago makes room for a new one."""
MEMORY_SHARE = 0.35
"""The fraction of the device's memory that the buffers of all stages may take."""
SHIFTING = "changes of biases and norms run without CUDA graphs"
RESHAPING = "adapters that are more than low rank run without CUDA graphs"
STEP_KINDS: tuple[LayerKind, ...] = tuple(kind for kind in LAYER_KINDS if kind != "text")


@dataclass
class Stats:
    """What the engine has done since it was made.

    rows: latents' shape -> rows run so far, in full or shallow. captures: buckets recorded. replays: calls run by a
    recording. rehearsals: first calls of a bucket, run on its buffers without one. layer_by_layer: calls run without
    buffers. evictions: stages dropped to make room. text_rows: rows whose text keys and values were computed.
    notes: the reason why calls could not be recorded -> how many. why: the last call's reason, "" where it has none.
    """

    rows: Counter[tuple[int, ...]] = field(default_factory=Counter)
    captures: int = 0
    replays: int = 0
    rehearsals: int = 0
    layer_by_layer: int = 0
    evictions: int = 0
    text_rows: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    why: str = ""
    _compiled_before: int = 0

    def tell(self, why: str) -> None:
        """Count a call that could not be recorded, and why."""
        self.notes[why] += 1
        self.why = why

    @property
    def recompiles(self) -> int:
        """Graphs that torch.compile has made since the last `Engine.reset`."""
        return _compiled() - self._compiled_before


class Engine:
    """Runs the UNet's calls. `bank` holds the adapters, `planner` chooses the forms.

    recorder_for: device -> what makes recordings on it, None where calls are to run layer by layer.
    """

    def __init__(self, unet: Any, bank: Bank, planner: Planner | None = None) -> None:
        self.bank = bank
        self.planner = planner or Planner()
        self.recorder_for: Callable[[torch.device], Recorder | None] = cuda_graphs
        self.recorder: Recorder | None = None
        self.graphs = True
        self.compiled = False
        self.kernels = False
        self.attention: AttentionChoice = "auto"
        self.stats = Stats(_compiled_before=_compiled())
        self._unet = unet
        self._table = bank.tables["unet"]
        self._memories: dict[Cut | None, TextMemory] = {}
        self._stages: OrderedDict[Bucket, Stage] = OrderedDict()
        self._refused: dict[Bucket, str] = {}
        self._last_bucket: dict[Cut | None, tuple[tuple[object, ...], Bucket | str]] = {}

    # -- settings ----------------------------------------------------------------------------------------

    def optimize(
        self,
        *,
        graphs: bool,
        compile: bool,
        attention: AttentionChoice = "auto",
        backend: str = "inductor",
        kernels: bool = False,
    ) -> None:
        """Choose how calls run.

        graphs: record and replay calls, on devices that can. compile: run the UNet's repeated blocks through
        torch.compile, with this backend; each size is compiled once. attention: the kernel. kernels: see `use_kernels`.
        """
        if attention != self.attention:
            torch.compiler.reset()  # the attention kernel is part of the compiled code
        self.graphs, self.attention = graphs, attention
        use_kernels(self._unet, kernels)
        if compile and not self.compiled:
            compile_blocks(self._unet, backend)
        if self.compiled and not compile:
            uncompile_blocks(self._unet)
        self.compiled, self.kernels = compile, kernels
        self.reset()

    def reset(self) -> None:
        """Forget all that depends on the device and dtype: stages, recordings, kept keys and values."""
        self._stages.clear()
        self._refused.clear()
        self._last_bucket.clear()
        self._memories.clear()
        device = self._table.layers[0].weight.device
        self.recorder = self.recorder_for(device)
        if self.kernels and device.type == "cuda":
            join_weights(self._unet)
        self.stats._compiled_before = _compiled()

    @property
    def stages(self) -> Sequence[Stage]:
        """The present stages, the least recently used first."""
        return tuple(self._stages.values())

    # -- a call ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self, call: UNetCall) -> UNetOutput:
        """Run a call. Its results are in the UNet's dtype. Raises what torch raises where memory runs out."""
        with attention_by(self.attention):
            return self._run(call)

    def _run(self, call: UNetCall) -> UNetOutput:
        self.stats.rows[call.shape] += call.rows
        self.stats.why = ""
        groups = grouped_by_pairs(call.uses)
        bucket = None if self._hooked else self._bucket(call, groups)
        stage = self._stage(bucket, call) if bucket else None
        if stage is not None:
            found = self._on_stage(stage, call, groups)
            if found is not None:
                return found
        self.stats.layer_by_layer += 1
        return self._layer_by_layer(call)

    def _on_stage(self, stage: Stage, call: UNetCall, groups: Mixes) -> UNetOutput | None:
        """The call's results from a stage; None where the stage cannot be run or recorded."""
        assert self.recorder is not None
        recorded, text_rows = stage.recorded, stage.text_rows
        try:
            found = stage.run(call, groups, self.recorder)
        except RuntimeError as error:  # torch.OutOfMemoryError is one too
            if recorded:
                raise
            self._refuse(stage.bucket, error)
            return None
        self.stats.captures += stage.recorded and not recorded
        self.stats.text_rows += stage.text_rows - text_rows
        self.stats.replays += stage.recorded
        self.stats.rehearsals += not stage.recorded
        return found

    def _layer_by_layer(self, call: UNetCall) -> UNetOutput:
        modules = self._modules(call.cut)
        if self._hooked:
            with self.bank.active("unet", call.uses, modules):
                return forward(self._unet, call)
        memory = self._memories.setdefault(call.cut, TextMemory(self._texts(call.cut)))
        self._remember(memory, call)
        with self.bank.active("unet", call.uses, modules, STEP_KINDS), memory.used():
            return forward(self._unet, call)

    def _remember(self, memory: TextMemory, call: UNetCall) -> None:
        """Put the keys and values of the call's texts into the memory. Those of new texts and mixes are computed."""
        rows = [
            RowText(text, self.bank.marked(uses)) for text, uses in zip(call.texts, call.uses, strict=True)
        ]
        missing = memory.missing(rows, call.text.shape[1])
        self.stats.text_rows += len(missing)
        if not missing:
            memory.seat(rows, missing, call.text[:0])
            return
        uses = [call.uses[place] for place in missing]
        with self.bank.active("unet", uses, self._modules(call.cut), ("text",)):
            memory.seat(rows, missing, call.text[missing])

    # -- stages ------------------------------------------------------------------------------------------

    def _bucket(self, call: UNetCall, groups: Mixes) -> Bucket | None:
        """The bucket of a call; None where it runs layer by layer."""
        if not self.graphs or self.recorder is None:
            return None
        bank = self.bank
        key: tuple[object, ...] = (
            bank.version,
            bank.form,
            call.shape,
            call.text.shape[1],
            call.mask is not None,
        )
        key = (*key, call.leaves, call.steady, call.uses)
        last = self._last_bucket.get(call.cut)
        if last is None or last[0] != key:
            last = self._last_bucket[call.cut] = (key, self._new_bucket(call, groups))
        if isinstance(last[1], str):
            self.stats.tell(last[1])
            return None
        return last[1]

    def _new_bucket(self, call: UNetCall, groups: Mixes) -> Bucket | str:
        """The bucket of a call, or why it has none."""
        group = call.rows // len(groups)
        rows = room_for_rows(call.rows, group)
        within = self._table.running(self._modules(call.cut))
        reaches = self.bank.reaches("unet")
        ranks = [Taken(self._table, kind, groups, reaches, within).ranks for kind in LAYER_KINDS]
        load = self._load(rows, rows // group, call.shape, call.steady)
        if any(map(self.bank.shifts, groups)):
            return SHIFTING
        reshaped = self.bank.reshaped_kinds("unet", groups, within)
        forms = self._forms(ranks, reshaped, load)
        if isinstance(forms, str):
            return forms
        return Bucket(
            call.shape,
            rows,
            group,
            call.text.shape[1],
            call.mask is not None,
            call.cut,
            call.leaves,
            forms,
            texts_reshaped="text" in reshaped,
        )

    def _load(self, rows: int, groups: int, shape: Sequence[int], steady: int) -> Load:
        return Load(rows, groups, shape[-2] * shape[-1], steady, MEMORY_SHARE * self._total_memory())

    def _forms(
        self, ranks: Sequence[Ranks], reshaped: Collection[LayerKind], load: Load
    ) -> tuple[KindForm, ...] | str:
        """A form for each kind of layer that adapters change; or a reason why the call cannot be recorded.

        All kinds share one room for buffers. reshaped: the kinds to which adapters do more than low-rank terms say;
        they take whole weights. The kind "text" never does: in SDXL these would be gigabytes, for what is computed once
        for each mix.
        """
        on_texts = {"text"} & {*reshaped}
        reshaped = {*reshaped} - on_texts
        if reshaped and self.bank.form not in ("auto", "dense"):
            return f"{RESHAPING} in the form {self.bank.form!r}"
        if reshaped and load.steady < FEWEST_STEADY:
            return f"{RESHAPING} where a mix changes within {FEWEST_STEADY} steps"
        forms = []
        for own in sorted(ranks, key=lambda own: own.kind not in reshaped):
            whole = own.kind in reshaped
            if own.kind in on_texts or not (own.lane or whole):
                continue
            found = self.planner.estimates(self._table, own, load)
            form = self.bank.form if self.bank.form != "auto" else self.planner.choose(found, load)
            if own.kind == "text":
                form = "pool" if self.bank.form == "pool" else "lane-packed"
            form = "dense" if whole else form
            rank = 0 if form == "dense" else room_for_rank(own.pool if form == "pool" else own.lane)
            forms.append(KindForm(own.kind, form, rank))
            load = replace(load, room=load.room - next(each.bytes for each in found if each.form == form))
            if whole and load.room < 0:
                return f"{RESHAPING}: the device's memory is too small for whole weights"
        return tuple(sorted(forms, key=lambda own: LAYER_KINDS.index(own.kind)))  # equal forms, equal buckets

    def explain(
        self, uses: Sequence[tuple[Use, ...]], shape: Sequence[int], steady: int
    ) -> tuple[tuple[KindPlan, ...], str]:
        """How a call over these rows would run.

        Returns, for each kind of layer that adapters change, the chosen form and what each form costs; and a note on
        what adapters do besides, "" where there is nothing to say.

        uses: for each row, its adapters. shape: [channels, h, w] of the latents. steady: as in `UNetCall`.
        """
        rows = tuple(uses)
        recorded = self.graphs and self.recorder is not None
        groups = grouped_by_pairs(rows) if recorded else grouped(rows)
        load = self._load(len(rows), len(groups), shape, steady)
        reaches, within = self.bank.reaches("unet"), self._table.running(("",))
        kinds = {kind: Taken(self._table, kind, groups, reaches, within).ranks for kind in LAYER_KINDS}
        reshaped = self.bank.reshaped_kinds("unet", groups, within)
        forms = self._forms(list(kinds.values()), reshaped, load)
        refused = forms if isinstance(forms, str) else ""
        staged = {own.kind: own.form for own in forms} if recorded and not isinstance(forms, str) else {}
        plans = tuple(
            KindPlan(
                ranks,
                len(self._table.of_kind[kind]),
                self.planner.estimates(self._table, ranks, load),
                staged.get(kind) or self.bank.choose(ranks, reshaped=any(map(self.bank.reshapes, rows))),
            )
            for kind, ranks in kinds.items()
            if ranks.lane or kind in staged
        )
        if recorded and any(map(self.bank.shifts, rows)):
            staged, refused = {}, SHIFTING
        apart = sorted(reshaped - staged.keys())
        note = (
            f"adapters change the whole weights of {' and '.join(apart)} layers row by row" if apart else ""
        )
        return plans, "; ".join(filter(None, (note, refused if recorded else "")))

    def _stage(self, bucket: Bucket, call: UNetCall) -> Stage | None:
        """The stage of a bucket, made if there is none yet; None where the bucket was refused or memory runs out."""
        stage = self._stages.get(bucket)
        if stage is None:
            if bucket in self._refused:
                self.stats.tell(self._refused[bucket])
                return None
            try:
                stage = Stage(self._unet, self.bank, bucket, call)
            except torch.OutOfMemoryError as error:
                self._refuse(bucket, error)
                return None
            self._stages[bucket] = stage
            self._bound(keep=bucket)
        self._stages.move_to_end(stage.bucket)
        return stage

    def _bound(self, keep: Bucket) -> None:
        """Drop the stages used longest ago while there are too many, or while they take too much memory."""
        limit = MEMORY_SHARE * self._total_memory()
        while len(self._stages) > MOST_STAGES or (
            len(self._stages) > 1 and sum(stage.bytes for stage in self._stages.values()) > limit
        ):
            oldest = next(bucket for bucket in self._stages if bucket != keep)
            del self._stages[oldest]
            self.stats.evictions += 1

    def _total_memory(self) -> float:
        device = self._table.layers[0].weight.device
        if device.type == "cuda":
            return float(torch.cuda.get_device_properties(device).total_memory)
        return 8.0 * 2**30

    def _refuse(self, bucket: Bucket, error: RuntimeError) -> None:
        """Note that calls of this bucket run layer by layer from now on, and why."""
        self._stages.pop(bucket, None)
        if isinstance(error, torch.OutOfMemoryError):
            self._stages.clear()
            reason = "the device's memory is too small for its buffers"
        else:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        size = f"{bucket.rows} rows of {bucket.shape[-1]} x {bucket.shape[-2]} latents"
        self._refused[bucket] = f"no CUDA graph for {size}: {reason}"
        self.stats.tell(self._refused[bucket])

    @property
    def _hooked(self) -> bool:
        """Whether an attention layer has hooks. They may change what it reads, so nothing is kept or replayed."""
        return any(attn._forward_pre_hooks or attn._forward_hooks for attn in self._table.attention.values())

    def _modules(self, cut: Cut | None) -> tuple[str, ...]:
        return shallow_modules(self._unet, cut) if cut else ("",)

    def _texts(self, cut: Cut | None) -> Mapping[str, Any]:
        within = self._table.running(self._modules(cut))
        return {
            name: attn
            for name, attn in self._table.texts.items()
            if within[self._table.place[f"{name}.to_k"]]
        }


def grouped_by_pairs(rows: Mixes) -> Mixes:
    """One mix for each pair of rows, where all rows come in pairs of equal neighbours; else one for each row.

    Which of the two it is must not depend on what the mixes hold.
    """
    pairs = len(rows) % 2 == 0 and rows[::2] == rows[1::2]
    return tuple(rows[::2]) if pairs else tuple(rows)


def cuda_graphs(device: torch.device) -> Recorder | None:
    """CUDA graphs on CUDA devices, nothing elsewhere."""
    return CudaGraphs(device) if device.type == "cuda" else None


def _compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
