"""StudioPipeline: the Python front end, in diffusers' vocabulary."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from pipelines.adapters.adapter import LoadReport
from pipelines.checkpoints import load_checkpoint
from pipelines.decoding import OutputType
from pipelines.denoise import steady, uses_of
from pipelines.engine.backends import AttentionChoice
from pipelines.engine.calibration import rates_of
from pipelines.engine.planner import CallPlan, Planner, Rates
from pipelines.engine.products import autotune
from pipelines.engine.residency.bank import FormChoice
from pipelines.engine.residency.store import AdapterStore
from pipelines.errors import AdapterError, RequestError, SetupError
from pipelines.events import Event, Failed, Finished, Stepped
from pipelines.families.family import FamilyName
from pipelines.features import passes_of
from pipelines.home import Home
from pipelines.model import Model
from pipelines.record import Record
from pipelines.request import Request
from pipelines.session import Session
from pipelines.spectrum import Profile, cached, measure, remember


@dataclass(frozen=True)
class Result:
    """Pictures and their records, in the order of the requests."""

    images: list[Any]
    records: list[Record]


WARM_STEPS = 3
"""The first call of a kind runs on its buffers, the second is recorded, the third is a replay."""


class StudioPipeline:
    """A model with its adapters, ready to render many different requests in shared UNet calls.

    pipe = StudioPipeline.from_pretrained("tiny-sdxl")
    pipe.load_lora_weights("fox.safetensors", adapter_name="fox")
    pipe([Request("a fox", adapters={"fox": 0.8}, seed=7), Request("a fox", seed=7)]).images
    """

    def __init__(self, model: Model, *, home: Home | None = None, dtype_is_given: bool = True) -> None:
        self.model = model
        self.home = home or Home.resolve()
        self._dtype_is_given = dtype_is_given

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | None = None,
        vae: str | Path | None = None,
        home: Home | None = None,
        form: FormChoice = "auto",
    ) -> StudioPipeline:
        """An embedded model's name, a diffusers folder, a .safetensors checkpoint, or a hub id.

        dtype: of the UNet and the text encoders; None is float32 on the CPU and becomes float16 when the
            pipeline moves to a GPU. vae: another VAE, as a file or folder. form: see `pipelines.engine.residency.bank`.
        Raises ModelError.
        """
        checkpoint = load_checkpoint(source, dtype=dtype or torch.float32, vae=vae, home=home)
        return cls(Model(checkpoint, form=form), home=home, dtype_is_given=dtype is not None)

    @classmethod
    def from_single_file(
        cls,
        file: str | Path,
        *,
        dtype: torch.dtype | None = None,
        vae: str | Path | None = None,
        form: FormChoice = "auto",
    ) -> StudioPipeline:
        """A .safetensors checkpoint; no hub is needed. Raises ModelError."""
        return cls.from_pretrained(Path(file), dtype=dtype, vae=vae, form=form)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> StudioPipeline:
        """Move to a device and, if given, another dtype. Raises SetupError for a device that is not there."""
        target = torch.device(device)
        if target.type == "cuda" and not torch.cuda.is_available():
            raise SetupError(
                "device 'cuda' is not available here; use 'cpu', or install a CUDA build of torch"
            )
        if dtype is None and not self._dtype_is_given:
            dtype = torch.float16 if target.type == "cuda" else torch.float32
        self.model.to(target, dtype)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "cuda") -> None:
        """Low memory: UNet, text encoders and VAE are on the device only while they work."""
        self.model.offload = True
        self.to(device)

    def enable_vae_tiling(self) -> None:
        """Low memory: decode large pictures tile by tile (seams can show, very faintly)."""
        self.model.vae.enable_tiling()

    def optimize(
        self,
        *,
        graphs: bool = True,
        compile: bool = False,
        form: FormChoice = "auto",
        tf32: bool | None = None,
        attention: AttentionChoice = "auto",
        kernels: bool = False,
    ) -> None:
        """How the UNet's calls run; none of it changes a picture beyond rounding.

        graphs: record CUDA graphs and replay them (on by default on CUDA). compile: the UNet's repeated blocks
            through torch.compile: 3 to 25 seconds once for each size of call, then faster; what it makes is kept in
            the home's cache. form: of the adapters' products, see `pipelines.engine.residency.bank`; "auto" chooses the
            cheapest for each call. tf32: whether float32 products on a GPU may round to 10 bits of mantissa (a
            picture's latents then differ by about 1e-3); for the whole process; None leaves torch's setting.
            attention: which of torch's attention kernels comes first, see `pipelines.engine.backends`.
            kernels: let Triton kernels of our own compete with the library's products, on CUDA in 16 bits: which is
            fastest is measured at the first call of each shape (seconds, once for a device) and kept in the home's
            cache. Without Triton, and elsewhere, nothing changes.
        """
        if compile:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.home.cache / "compile"))
        if tf32 is not None:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        self.model.bank.form = form
        if self.model.device.type == "cuda":
            self.calibrate()
        if kernels:
            autotune.keep_in(self.home.cache)
        self.model.engine.optimize(graphs=graphs, compile=compile, attention=attention, kernels=kernels)

    def calibrate(self) -> Rates:
        """The device's rates, which the planner goes by from now on: measured once in about a second, then kept in
        the home's cache."""
        rates = rates_of(self.model.device, self.model.dtype, self.home.cache)
        self.model.engine.planner = Planner(rates)
        return rates

    def plan(self, requests: Request | Sequence[Request]) -> tuple[CallPlan, ...]:
        """What the first step of these requests, rendered together, would run: one call for each size.

        Raises StudioError for a request that this model cannot render.
        """
        asked = [requests] if isinstance(requests, Request) else list(requests)
        resolved = [request.resolved(self.model.facts) for request in asked]
        sizes = dict.fromkeys((request.width, request.height) for request in resolved)
        found = []
        for width, height in sizes:
            assert width is not None
            assert height is not None
            runs = []
            for own in resolved:
                if (own.width, own.height) == (width, height):
                    plans = own.plans()
                    passes = passes_of(plans, remembering=own.cut is not None)
                    runs.append(uses_of(plans, passes, shallow=False))
            rows = tuple(use for run in runs for use in run[0])
            shape = self.model.latent_shape(width, height)
            lasting = min(steady(run, 0) for run in runs)
            kinds, note = self.model.engine.explain(rows, shape, lasting)
            found.append(CallPlan(width, height, len(runs), len(rows), lasting, kinds, note))
        return tuple(found)

    @property
    def row_limit(self) -> int | None:
        """UNet rows a call may hold at most; None lets the device's memory decide."""
        return self.model.row_limit

    @row_limit.setter
    def row_limit(self, rows: int | None) -> None:
        if rows is not None and rows < 1:
            raise SetupError(f"row_limit={rows} must be at least 1, or None")
        self.model.row_limit = rows

    @property
    def store(self) -> AdapterStore:
        """Where the adapters are kept, and what that has cost: `store.stats`, `store.limits`."""
        return self.model.store

    def load_lora_weights(
        self, file: str | Path, adapter_name: str | None = None, *, family: FamilyName | None = None
    ) -> LoadReport:
        """Load a LoRA by path or by its name in the LoRA folders, as `adapter_name` (its stem by default).

        family: overrides what the file's metadata says it was made for. All of it is loaded, or an AdapterError
        says why not and nothing is.
        """
        found = self.home.find_lora(file, model=self.model.checkpoint.label)
        name = adapter_name or found.path.stem
        report = self.model.load_adapter(found.path, name, family)
        profile = cached(self.home, self.model, name)
        if profile is not None:
            self.model.profiled[name] = profile.band
        return report

    def unload_lora_weights(self, adapter_name: str | None = None) -> None:
        """Unload one adapter, or all of them. Raises AdapterError for a name that is not loaded."""
        if adapter_name is not None and adapter_name not in self.adapters:
            raise AdapterError(
                f"no adapter named {adapter_name!r} is loaded; loaded are {', '.join(self.adapters) or 'none'}"
            )
        for name in [adapter_name] if adapter_name is not None else list(self.adapters):
            self.model.store.unload(name)
            self.model.profiled.pop(name, None)

    def profile(self, adapter_name: str) -> Profile:
        """The frequency profile of a loaded adapter on this model (see `pipelines.spectrum`), whose band CMLoRA goes
        by from now on. Measured once in a few short runs, then kept in the home's cache.

        Raises AdapterError for a name that is not loaded.
        """
        if adapter_name not in self.adapters:
            raise AdapterError(
                f"no adapter named {adapter_name!r} is loaded; loaded are {', '.join(self.adapters) or 'none'}"
            )
        profile = cached(self.home, self.model, adapter_name)
        if profile is None:
            profile = measure(self.model, adapter_name)
            remember(self.home, self.model, profile)
        self.model.profiled[adapter_name] = profile.band
        return profile

    @property
    def adapters(self) -> Mapping[str, LoadReport]:
        """The loaded adapters: name -> load report."""
        return MappingProxyType({name: known.report for name, known in self.model.store.known.items()})

    def __call__(self, requests: Request | Sequence[Request], *, output_type: OutputType = "pil") -> Result:
        """Render. All requests are checked before any work begins; a picture that fails raises its error.

        output_type: "pil", "np" ([h, w, 3] in 0 … 1), "pt" ([3, h, w] in 0 … 1) or "latent" ([channels, h, w]).
        Raises StudioError.
        """
        with self._submitted(requests, output_type) as (session, ids):
            finished = {}
            for event in session.drain():
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished):
                    finished[event.id] = event
        return Result([finished[id].image for id in ids], [finished[id].record for id in ids])

    def stream(
        self, requests: Request | Sequence[Request], *, output_type: OutputType = "pil"
    ) -> Generator[Event, None, None]:
        """Render as events (see `pipelines.session`); an event's `id` is the request's place, from 1.

        Closing the iterator stops before the next UNet call.
        """
        with self._submitted(requests, output_type) as (session, _):
            yield from session.drain()

    def warm_up(
        self,
        requests: Request | Sequence[Request],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        """Run the first steps of these requests and drop them, so that whatever compiles or is recorded for pictures
        of their sizes and number is there when they are asked for. progress: told how many steps are done, of how many.

        Raises StudioError.
        """
        done = 0
        with closing(self.stream(requests, output_type="latent")) as events:
            for event in events:
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Stepped) and event.step > done:
                    done = event.step
                    progress(done, min(event.count, WARM_STEPS))
                if done >= WARM_STEPS:
                    return

    @contextmanager
    def _submitted(
        self, requests: Request | Sequence[Request], output_type: OutputType
    ) -> Iterator[tuple[Session, list[int]]]:
        if output_type not in ("pil", "np", "pt", "latent"):
            raise RequestError(f"output_type={output_type!r} must be pil, np, pt or latent")
        session = Session(self.model, output_type=output_type)
        asked = [requests] if isinstance(requests, Request) else list(requests)
        yield session, [session.submit(request).id for request in asked]
