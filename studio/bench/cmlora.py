"""What CMLoRA's caching costs and what it changes, against Composite and against CMLoRA without caching.

    python -m studio.bench.cmlora flops   [--check]     counted on the published full-size UNets, nothing computed
    python -m studio.bench.cmlora seconds [--model …]   whole pictures on this machine, FLOPs counted on the real calls
    python -m studio.bench.cmlora quality [--model …]   how far each refresh mode's latents lie from uncached CMLoRA's

For developers: it is no command of `lora-studio`.

`flops` runs the engine's own full and shallow passes, adapters live, on tensors without data, and multiplies by the
passes that the schedule of a run holds. `quality` names the default by this rule: the cheapest mode whose difference to
uncached CMLoRA is not above that of uncached CMLoRA to Composite; if there is none, the closest.
Exit status 1 where --check finds a limit broken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from composers import Composer, Composite, Mix, Step, Use, build
from pipelines import Record, Request, StudioPipeline, assets
from pipelines.adapters import Adapter, AdapterMetadata, LoadReport, LowRank
from pipelines.engine.residency.bank import Bank
from pipelines.families.family import Cut
from pipelines.families.unet import captured, shallow_modules, shallow_pass
from pipelines.features import passes_of
from pipelines.record import device_name

CACHING = ("dominant_only", "dominant_every_step", "every_step_in_turn", "all")
"""Refresh modes that use the cache, the cheapest first (without a low band, the middle two cost the same)."""
FAMILIES: Sequence[tuple[str, int, Cut]] = (
    ("sd1", 64, "published"),
    ("sdxl", 128, "deep"),
    ("sdxl", 64, "deep"),
    ("sdxl", 128, "published"),
)
"""Published configuration, side of the latents, cut."""
MOST_COST = {("sd1", 64, 20): 0.50, ("sd1", 64, 100): 0.45, ("sdxl", 128, 20): 0.43, ("sdxl", 128, 100): 0.40}
"""The most that dominant_only may cost, relative to Composite, with five adapters and the family's default cut."""
CATEGORIES = ("character", "clothing", "style", "background", "object")
OWN_TURNS = "uncached, turns every step"
RANK = 16
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
GUIDANCE = 7.0


# -- passes and FLOPs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """The passes of a run, counted in pairs of a positive and a negative lane."""

    full: int
    shallow: int

    def cost(self, shallow: float) -> float:
        """The cost in full pairs. shallow: cost of a shallow pair, in full ones."""
        return self.full + shallow * self.shallow


def passes(composer: Composer, adapters: int, steps: int, *, low: int = 0) -> Counted:
    """The passes of a run with `adapters` adapters, `low` of them in the low band."""
    uses = tuple(Use(str(place), band="low" if place < low else "high") for place in range(adapters))
    plans = [composer.plan(Step(index, steps, GUIDANCE), Mix(uses)) for index in range(steps)]
    found = passes_of(plans, remembering=composer.plans_reuse)
    flags = [flag for step in found for flag in step.shallow]
    return Counted(flags.count(False) // 2, flags.count(True) // 2)


def cmlora(refresh: str) -> Composer:
    return build("cmlora", {"refresh": refresh})


def pair_flops(config: str, cells: int, cut: Cut) -> tuple[int, int]:
    """(full, shallow) FLOPs of a pair of lanes, each with one adapter of rank 16 on its attention layers."""
    import diffusers

    kind: Any = diffusers.UNet2DConditionModel
    with torch.device("meta"):
        unet: Any = kind.from_config(kind.load_config(assets.root() / "configs" / config / "unet")).eval()
        bank = Bank({"unet": unet}, "lane-packed")
        bank.load(_empty_adapter(unet))
        sample, timestep = torch.empty(2, 4, cells, cells), torch.empty(2)
        conditions: dict[str, Any] = {
            "encoder_hidden_states": torch.empty(2, 77, unet.config.cross_attention_dim)
        }
        if unet.config.addition_embed_type == "text_time":
            pooled = (
                unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
            )
            conditions["added_cond_kwargs"] = {
                "text_embeds": torch.empty(2, pooled),
                "time_ids": torch.empty(2, 6),
            }
        rows = [(Use("one"),)] * 2
        with torch.inference_mode():
            with (
                FlopCounterMode(display=False) as full,
                bank.active("unet", rows),
                captured(unet, [cut]) as found,
            ):
                unet(sample, timestep, **conditions)
            with (
                FlopCounterMode(display=False) as shallow,
                bank.active("unet", rows, shallow_modules(unet, cut)),
            ):
                shallow_pass(unet, cut, found[cut], sample, timestep, **conditions)
    return int(full.get_total_flops()), int(shallow.get_total_flops())


def _empty_adapter(unet: nn.Module) -> Adapter:
    layers = {
        f"unet.{name}": LowRank(
            torch.empty(RANK, module.weight.shape[1]), torch.empty(module.weight.shape[0], RANK), 1.0
        )
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(TARGETS)
    }
    report = LoadReport("one", "", "LoRA", "", "", "", {}, {}, (RANK, RANK), None, "fp32", "")
    return Adapter("one", layers, AdapterMetadata(), report)


def count_flops() -> list[dict[str, Any]]:
    """One row for each family, cut, run length, number of adapters and refresh mode."""
    rows = []
    for config, cells, cut in FAMILIES:
        full, shallow = pair_flops(config, cells, cut)
        for steps in (20, 100):
            for adapters in (2, 3, 4, 5):
                composite = passes(Composite(), adapters, steps)
                for refresh in CACHING:
                    counted = passes(cmlora(refresh), adapters, steps)
                    with_low = passes(cmlora(refresh), adapters, steps, low=1)
                    share = shallow / full
                    rows.append(
                        {
                            "config": config,
                            "cells": cells,
                            "cut": cut,
                            "shallow / full": round(share, 4),
                            "steps": steps,
                            "adapters": adapters,
                            "refresh": refresh,
                            "full passes": counted.full,
                            "shallow passes": counted.shallow,
                            "TFLOPs": round(counted.cost(share) * full / 1e12, 2),
                            "of Composite": counted.cost(share) / composite.full,
                            "of Composite, one low": with_low.cost(share) / composite.full,
                        }
                    )
    return rows


def broken_gates(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The limits that are exceeded, judged by the more expensive case: all adapters in the high band, or one in the
    low."""
    found = []
    for row in rows:
        limit = MOST_COST.get((row["config"], row["cells"], row["steps"]))
        default = row["cut"] == ("published" if row["config"] == "sd1" else "deep")
        if limit and default and row["adapters"] == 5 and row["refresh"] == "dominant_only":
            cost = max(row["of Composite"], row["of Composite, one low"])
            if cost > limit:
                found.append(
                    f"{row['config']} at {row['cells']} cells, {row['steps']} steps: {cost:.3f} > {limit}"
                )
    return found


# -- whole pictures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    latents: Tensor
    record: Record
    seconds: float


def render(pipe: StudioPipeline, request: Request) -> Sample:
    began = time.perf_counter()
    result = pipe(request, output_type="latent")
    if pipe.model.device.type == "cuda":
        torch.cuda.synchronize(pipe.model.device)
    return Sample(result.images[0], result.records[0], time.perf_counter() - began)


def load(model: str, device: str, loras: Sequence[str]) -> StudioPipeline:
    """The model with these adapters, by default with all built-in ones that are made for it."""
    pipe = StudioPipeline.from_pretrained(model)
    names = loras or [lora.name for lora in assets.embedded_loras() if lora.model == model]
    for name in names:
        pipe.load_lora_weights(name)
    return pipe.to(device)


def mixes(pipe: StudioPipeline, adapters: int, count: int) -> list[tuple[str, tuple[Use, ...]]]:
    """`count` prompts, each with a mix, as in ComposLoRA: one adapter from each category, in its order; their trigger
    words are the prompt. Where there are not enough categories, further adapters of the same ones are added. B-LoRAs
    are left out."""
    bank = pipe.model.store.known
    loaded = sorted(name for name in bank if bank[name].metadata.raw.get("studio.kind") != "b-lora")
    by_category: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for name in loaded:
        by_category.setdefault(pipe.model.adapter(name).metadata.category, []).append(name)
    found = []
    for index in range(count):
        names = [members[index % len(members)] for members in by_category.values() if members]
        names = (names + [name for name in loaded if name not in names])[:adapters]
        triggers = [pipe.model.adapter(name).metadata.triggers[:1] or (name,) for name in names]
        prompt = ", ".join(word for words in triggers for word in words)
        found.append((prompt, tuple(_use(pipe, name) for name in names)))
    return found


def _use(pipe: StudioPipeline, name: str) -> Use:
    return Use(name, pipe.model.adapter(name).metadata.preferred_weight or 1.0)


def ways() -> dict[str, Composer]:
    """Composite, uncached CMLoRA and the caching modes, by name."""
    modes = {refresh: cmlora(refresh) for refresh in ("uncached", *CACHING)}
    return {"composite": Composite(), **modes}


def time_pictures(
    pipe: StudioPipeline, numbers: Sequence[int], steps: int, repeats: int
) -> list[dict[str, Any]]:
    """One row for each way and number of adapters: passes, FLOPs of the real calls, median seconds."""
    rows = []
    for adapters in numbers:
        prompt, uses = mixes(pipe, adapters, 1)[0]
        base = Request(prompt, adapters=uses, seed=1, steps=steps)
        requests = {name: replace(base, composer=way) for name, way in ways().items()}
        flops = {}
        for name, request in requests.items():  # warms up as well
            with FlopCounterMode(display=False) as counter:
                render(pipe, request)
            flops[name] = counter.get_total_flops()
        taken: dict[str, list[Sample]] = {name: [] for name in requests}
        for _ in range(repeats):
            for name, request in requests.items():
                taken[name].append(render(pipe, request))
        for name, pictures in taken.items():
            record = pictures[0].record
            seconds = statistics.median(picture.record.device_seconds for picture in pictures)
            composite = statistics.median(picture.record.device_seconds for picture in taken["composite"])
            rows.append(
                {
                    "adapters": adapters,
                    "steps": steps,
                    "way": name,
                    "full rows": record.unet_rows,
                    "shallow rows": record.shallow_rows,
                    "feature KiB": record.feature_bytes // 1024,
                    "GFLOPs": round(flops[name] / 1e9, 2),
                    "GFLOPs of Composite": round(flops[name] / flops["composite"], 3),
                    "UNet seconds": round(seconds, 3),
                    "seconds of Composite": round(seconds / composite, 3),
                }
            )
    return rows


def compare_pictures(
    pipe: StudioPipeline, adapters: int, steps: int, prompts: int, seeds: int, *, cuts: bool
) -> dict[str, Any]:
    """Relative differences of latents from those of uncached CMLoRA, over prompts x seeds: of Composite and of each
    caching mode.

    The mode in which the turn passes at every step is also compared with its own uncached variant. cuts: also measure
    the model's other cuts.
    """
    base = Request("", steps=steps)
    asked = {name: replace(base, composer=way) for name, way in ways().items()}
    asked[OWN_TURNS] = replace(base, composer=build("cmlora", {"refresh": "uncached", "interval": 1}))
    for cut in pipe.model.facts.cuts[1:] if cuts else ():
        asked |= {f"{name}, {cut} cut": replace(asked[name], cut=cut) for name in ("dominant_only", "all")}
    differences: dict[str, list[float]] = {}
    for seed in range(seeds):
        for number, (prompt, uses) in enumerate(mixes(pipe, adapters, prompts)):
            here = [replace(one, prompt=prompt, adapters=uses, seed=seed) for one in asked.values()]
            latents = dict(zip(asked, pipe(here, output_type="latent").images, strict=True))
            for name, distance in _distances(latents).items():
                differences.setdefault(name, []).append(distance)
            so_far = {name: round(statistics.mean(found), 3) for name, found in differences.items()}
            print(f"prompt {number + 1}, seed {seed}, means so far: {so_far}", file=sys.stderr, flush=True)
    summary = {
        name: {"mean": statistics.mean(found), "median": statistics.median(found), "largest": max(found)}
        for name, found in differences.items()
    }
    return {
        "adapters": adapters,
        "steps": steps,
        "pictures": prompts * seeds,
        "relative difference to uncached CMLoRA": summary,
        "default": choose({name: summary[name]["mean"] for name in CACHING}, summary["composite"]["mean"]),
    }


def _distances(latents: Mapping[str, Tensor]) -> dict[str, float]:
    """Each way's relative difference from the uncached one."""

    def between(found: Tensor, exact: Tensor) -> float:
        return float((found - exact).norm() / exact.norm())

    exact, own = latents["uncached"], latents[OWN_TURNS]
    others = {name: between(found, exact) for name, found in latents.items() if found is not exact}
    return others | {
        "every_step_in_turn, to its own turns uncached": between(latents["every_step_in_turn"], own)
    }


def choose(modes: Mapping[str, float], composite: float) -> str:
    """The first (cheapest) mode that is not further from uncached CMLoRA than Composite is, else the closest."""
    near = [name for name in CACHING if modes[name] <= composite]
    return near[0] if near else min(modes, key=lambda name: modes[name])


# -- the program -----------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as text in columns."""
    texts = [[_text(value) for value in row.values()] for row in rows]
    heads = list(rows[0]) if rows else []
    widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in [heads, *texts]
    ]
    return "\n".join(lines)


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studio.bench.cmlora",
        description="For developers of the studio. " + (__doc__ or "").split("\n")[0],
    )
    parser.add_argument("what", choices=("flops", "seconds", "quality"))
    parser.add_argument("--model", default="tiny-sdxl", help="a model's name, folder or file")
    parser.add_argument(
        "--lora", action="append", default=[], help="a LoRA's name or file; all embedded ones by default"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--adapters", type=int, nargs="+", default=[5], help="in a mix, one run each")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="for seconds")
    parser.add_argument("--cuts", action="store_true", help="for quality: the model's other cuts as well")
    parser.add_argument("--check", action="store_true", help="fail where a limit is broken")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args(arguments)
    missed: list[str] = []
    result: Any
    if options.what == "flops":
        result = count_flops()
        print(table(result))
        missed = broken_gates(result) if options.check else []
    else:
        pipe = load(options.model, options.device, options.lora)
        print(f"{options.model}, {device_name(pipe.model.device)}, {pipe.model.dtype}")
        if options.what == "seconds":
            result = time_pictures(pipe, options.adapters, options.steps, options.repeats)
            print(table(result))
        else:
            result = [
                compare_pictures(
                    pipe, adapters, options.steps, options.prompts, options.seeds, cuts=options.cuts
                )
                for adapters in options.adapters
            ]
            print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    for limit in missed:
        print(f"limit broken: {limit}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
