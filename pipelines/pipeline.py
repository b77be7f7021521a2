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
    """Pictures and their records, in the order of the requests. images: in the form that `output_type` asked for."""

    images: list[Any]
    records: list[Record]


WARM_STEPS = 3
"""The first call of a kind runs on its buffers, the second is recorded, the third is a replay."""


class StudioPipeline:
    """A model with its adapters, ready to render many different requests in shared UNet calls.

    For one thread at a time.

    pipe = StudioPipeline.from_pretrained("tiny-sdxl")
    pipe.load_lora_weights("fox.safetensors", adapter_name="fox")
    pipe([Request("a fox", adapters={"fox": 0.8}, seed=7), Request("a fox", seed=7)]).images
    """

    def __init__(self, model: Model, *, home: Home | None = None, dtype_is_given: bool = True) -> None:
        self.model = model
        self.home = home or Home.resolve()
        self._dtype_is_given = dtype_is_given
        model.embeddings.listed = lambda: {entry.name: entry.path for entry in self.home.embeddings()}

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
        """Load a model, on the CPU.

        source: a model's name (built in, or in the model folders), a diffusers folder, a .safetensors checkpoint, or a
            hub id.
        dtype: of the UNet and the text encoders. None is float32 on the CPU, and float16 once the pipeline moves to a
            GPU.
        vae: another VAE: a name in a VAE folder, a .safetensors file, or a diffusers folder.
        home: the user's folder; None is the usual one.
        form: of the adapters' products, see `pipelines.engine.residency.bank`.

        Raises ModelError for what cannot be found, read or run.
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
        """Load a .safetensors checkpoint; no hub is needed. As `from_pretrained` else. Raises ModelError."""
        return cls.from_pretrained(Path(file), dtype=dtype, vae=vae, form=form)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> StudioPipeline:
        """Move to a device and return the pipeline.

        dtype: of the UNet and the text encoders. None keeps one that was given to `from_pretrained`; else it is float16
        on CUDA, and float32 elsewhere. Raises SetupError where CUDA is asked for and is not there.
        """
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
        """Save memory: UNet, text encoders and VAE are on the device only while they work."""
        self.model.offload = True
        self.to(device)

    def enable_vae_tiling(self) -> None:
        """Save memory: large pictures are decoded tile by tile. Very faint seams can show."""
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
        """Choose how the UNet's calls run. None of it changes a picture beyond rounding.

        graphs: record CUDA graphs and replay them. On other devices it means nothing.
        compile: run the UNet's repeated blocks through torch.compile. The first call of each size then takes some tens
            of seconds, and the later ones are faster. What was compiled is kept in the home's cache.
        form: of the adapters' products, see `pipelines.engine.residency.bank`; "auto" takes the cheapest for each call.
        tf32: whether float32 products on a GPU may round to 10 bits of mantissa. Latents then differ by about 1e-3.
            It holds for the whole process. None leaves torch's setting.
        attention: which of torch's attention kernels comes first, see `pipelines.engine.backends`.
        kernels: let the studio's own Triton kernels compete with the library's products, on CUDA in 16 bits. At the
            first call of each shape the fastest is found, which takes seconds, once for a device. What was found is
            kept in the home's cache. Elsewhere, and without Triton, nothing changes.
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
        """The device's rates, by which the planner decides from now on.

        They are measured once, in about a second, and kept in the home's cache.
        """
        rates = rates_of(self.model.device, self.model.dtype, self.home.cache)
        self.model.engine.planner = Planner(rates)
        return rates

    def plan(self, requests: Request | Sequence[Request]) -> tuple[CallPlan, ...]:
        """What the first step of these requests would run, if they were rendered together: one call for each size.

        Nothing is rendered. Raises StudioError for a request that this model cannot render.
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
        """The most UNet rows that a call may hold, 1 or above; None lets the device's memory decide.

        Setting a smaller number raises SetupError.
        """
        return self.model.row_limit

    @row_limit.setter
    def row_limit(self, rows: int | None) -> None:
        if rows is not None and rows < 1:
            raise SetupError(f"row_limit={rows} must be at least 1, or None")
        self.model.row_limit = rows

    @property
    def store(self) -> AdapterStore:
        """Where the adapters are kept. `store.limits` bounds that, and `store.stats` says what it has cost."""
        return self.model.store

    def load_lora_weights(
        self, file: str | Path, adapter_name: str | None = None, *, family: FamilyName | None = None
    ) -> LoadReport:
        """Load a LoRA by its path, or by its name in the LoRA folders.

        adapter_name: what requests call it; None is the file's name without its ending. family: the model family that
        it was made for, where the file's own metadata is wrong. Either all of it is loaded, or AdapterError says why
        not, and nothing is.
        """
        found = self.home.find_lora(file, model=self.model.checkpoint.label)
        name = adapter_name or (found.path.parent.name if found.foldered else found.path.stem)
        report = self.model.load_adapter(found.path, name, family)
        profile = cached(self.home, self.model, name)
        if profile is not None:
            self.model.profiled[name] = profile.band
        return report

    def load_textual_inversion(self, file: str | Path, token: str | None = None) -> str:
        """Read an embedding, and return its word, by which prompts name it (see `pipelines.text.embeddings`).

        file: a .safetensors file. token: the word; None is the file's name. Raises AdapterError.
        """
        path = Path(file)
        return self.model.embeddings.load(path, token or path.stem).name

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
        """The frequency profile of a loaded adapter on this model (see `pipelines.spectrum`).

        CMLoRA takes the adapter's band from it from now on. It is measured once, in a few short runs, and kept in the
        home's cache. Raises AdapterError for a name that is not loaded.
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
        """The loaded adapters: name -> what was read of the file. A view; it cannot be changed."""
        return MappingProxyType({name: known.report for name, known in self.model.store.known.items()})

    def __call__(self, requests: Request | Sequence[Request], *, output_type: OutputType = "pil") -> Result:
        """Render all requests, and return their pictures.

        output_type: "pil"; "np", arrays [height, width, 3] of float32 in 0 … 1; "pt", tensors [3, height, width], the
        same; or "latent", tensors [channels, h, w].

        All requests are checked before any work begins. Raises StudioError for a request that this model cannot render.
        Where a picture fails later, its error is raised, and the other pictures are lost. `stream` yields those too.
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
        """Render all requests, and yield what happens (see `pipelines.events`).

        An event's `id` is the request's place, from 1. output_type: as in `__call__`. Closing the iterator stops before
        the next UNet call. A request that this model cannot render raises StudioError at the first `next`, before any
        work. A picture that fails later is told as `Failed`.
        """
        with self._submitted(requests, output_type) as (session, _):
            yield from session.drain()

    def warm_up(
        self,
        requests: Request | Sequence[Request],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        """Run the first steps of these requests, and drop them.

        Whatever is compiled or recorded for pictures of their sizes and number is then there when they are asked for.
        progress: called with the number of steps that are done, and of how many. Raises StudioError.
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
