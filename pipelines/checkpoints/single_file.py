"""From a single .safetensors checkpoint to its components, without the network.

The keys and shapes decide what the file is, before any tensor is read (`pipelines.checkpoints.contents`). Every weight
is used, or known to be of no use. Anything but a complete SD1.x, SD2.x or SDXL text-to-image model is refused, with a
message that says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from composers.shown import shown
from pipelines import assets
from pipelines.checkpoints.components import (
    Components,
    make_model_scheduler,
    quietly,
    read_json,
    vae_dtype,
)
from pipelines.checkpoints.contents import Contents, Part, contents_of
from pipelines.checkpoints.keys import UNET, VAE, unet_inside
from pipelines.checkpoints.stored import Reader, opened
from pipelines.checkpoints.weights import WeightsHeader, read_weights_header
from pipelines.errors import ModelError
from pipelines.families.family import SD2, SDXL, Family
from pipelines.home.files import read_text
from pipelines.home.plain import LONGEST_YAML, read_yaml, reading

FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"
PAD_TOKENS = {"sd1": ("<|endoftext|>",), "sd2": ("!",), "sdxl": ("<|endoftext|>", "!")}
"""Family -> the padding token of each of its tokenizers."""
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
OTHER_PREDICTIONS = "x0", "x_0", "sample", "flow", "rectified", "rf", "edm"
"""How the prediction types begin that a header may state and that are not run."""
NO_PREDICTION = "none", "null", "unknown", "n/a"
CLASSES = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel"}


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint's keys, shapes and metadata say about it.

    prediction_type: "epsilon" or "v_prediction". zero_snr: whether it was trained with zero terminal SNR.
    notes: what a user should know of how it is read.
    """

    family: Family
    prediction_type: str
    zero_snr: bool
    contents: Contents
    notes: tuple[str, ...] = ()

    @property
    def has_vae(self) -> bool:
        return VAE in self.contents.parts

    @property
    def unet_config(self) -> Mapping[str, Any]:
        """diffusers' configuration of its UNet, which may be smaller than the published one."""
        return self.contents.parts[UNET].config

    @property
    def line(self) -> str:
        """The model in one line."""
        smaller = f" ({self.contents.smaller})" if self.contents.smaller else ""
        return "; ".join((f"{self.family.label}{smaller}", *self.notes))


def load_single_file(
    file: Path, dtype: torch.dtype, vae: Any = None, facts: CheckpointFacts | None = None
) -> Components:
    """Load a checkpoint without the network.

    vae: a VAE to use in place of the file's own. facts: what `examine` found, if that is known.
    Raises ModelError for what cannot be run, and for a file without a VAE where none is given; and NoAnswer.
    """
    facts = facts or examine(file)
    family, parts = facts.family, facts.contents.parts
    if vae is None and not facts.has_vae:
        raise ModelError(f"{file.name} has no VAE inside; name one with --vae (or vae=…)")
    tokenizers = load_tokenizers(family)
    with opened(file, facts.contents.storage) as read:
        modules = {
            name: build(name, part, read, vae_dtype(dtype, part.config) if name == VAE else dtype)
            for name, part in parts.items()
            if name != VAE or vae is None
        }
    return Components(
        family=family,
        unet=modules[UNET],
        vae=modules.get(VAE, vae),
        text_encoders={name: modules[name] for name in family.text_encoders},
        tokenizers=dict(zip(family.text_encoders, tokenizers, strict=True)),
        scheduler=_scheduler(assets.root() / "configs" / family.name, facts),
        force_zeros_for_empty_prompt=family is SDXL,
        files=(file,),
        notes=facts.notes,
    )


def build(name: str, part: Part, read: Reader, dtype: torch.dtype) -> Any:
    """One part of a model with its weights. name: "unet", "vae" or a text encoder's. Every weight is set."""
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    made: Any
    with init_empty_weights(include_buffers=False), quietly():
        if name in CLASSES:
            made = getattr(diffusers, CLASSES[name]).from_config(dict(part.config))
        else:
            projected = "text_projection.weight" in part.weights
            kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
            made = kind(transformers.CLIPTextConfig.from_dict(dict(part.config)))
    inner = "text_model." if hasattr(made, "text_model") else ""
    tensors = {
        (weight if weight.startswith("text_projection.") else inner + weight): read(where, dtype)
        for weight, where in part.weights.items()
    }
    made.load_state_dict(tensors, strict=True, assign=True)
    return made.eval()


def load_tokenizers(family: Family) -> list[Any]:
    """CLIP's tokenizer, once for each text encoder of the family, with its padding token."""
    from transformers import CLIPTokenizer

    folder = str(assets.root() / "configs" / "tokenizer")
    return [
        CLIPTokenizer.from_pretrained(folder, local_files_only=True, pad_token=pad, model_max_length=77)
        for pad in PAD_TOKENS[family.name]
    ]


def examine(file: Path) -> CheckpointFacts:
    """Read a checkpoint's header, and say what it is. Raises ModelError, saying what it is, for what cannot be run;
    and NoAnswer."""
    refuse_ending(file)
    header = read_weights_header(file)
    contents = contents_of(file.name, header)
    predicts, note = _prediction_type(file, header, contents)
    return CheckpointFacts(
        family=contents.family,
        prediction_type=predicts,
        zero_snr="ztsnr" in contents.marks
        or header.metadata.get("ss_zero_terminal_snr", "").lower() == "true",
        contents=contents,
        notes=(*contents.notes, *note),
    )


def holds_unet(file: Path) -> bool:
    """Whether a .safetensors file is a checkpoint, or a part of one with a UNet. Raises ModelError for one that cannot
    be read, and NoAnswer."""
    return unet_inside(read_weights_header(file))


def refuse_ending(file: Path) -> None:
    """Raises ModelError for a file that its name says is no safetensors."""
    ending = file.suffix.lower()
    if ending in PICKLES:
        raise ModelError(
            f"{file.name} is a pickle, which can run code when it is opened; use the model's .safetensors file"
        )
    if ending == ".gguf":
        raise ModelError(
            f"{file.name} is a GGUF file (quantized), which is not supported; use a .safetensors file"
        )
    if ending not in (".safetensors", ".sft"):
        raise ModelError(f"{file.name} is no model file; use a .safetensors file or a diffusers folder")


def _prediction_type(file: Path, header: WeightsHeader, contents: Contents) -> tuple[str, tuple[str, ...]]:
    """(the prediction type, a note where it is a guess): by the marker key, else the metadata, else a .yaml beside the
    file, else the family's usual.

    The weights do not tell. SD2.x's published 768-pixel models predict v, and nearly all others follow them. SD2.x's
    512-pixel base needs a .yaml with `parameterization: "eps"` beside it. SD-Turbo, whose keys are named as the later
    original code does, predicts noise.
    """
    if "v_pred" in contents.marks:
        return "v_prediction", ()
    said = header.metadata.get("modelspec.prediction_type") or header.metadata.get(
        "modelspec.predict_key", ""
    )
    said = said.strip().lower()
    if not said and header.metadata.get("ss_v_parameterization", "").strip().lower() == "true":
        said = "v"
    said = said or _parameterization(file.with_suffix(".yaml"))
    architecture = header.metadata.get("modelspec.architecture", "").lower()
    if said.startswith("v") or (not said and architecture.startswith("stable-diffusion-v2-768-v")):
        return "v_prediction", ()
    if said.startswith("e") or (not said and architecture.startswith("stable-diffusion-v2-512")):
        return "epsilon", ()
    if said.startswith(OTHER_PREDICTIONS):
        raise ModelError(
            f"{file.name} says that it predicts {shown(said)} (prediction type), which is not supported; models that "
            "predict epsilon or v can be used"
        )
    if contents.family is not SD2:
        odd = f"its prediction type {shown(said)} is not known; epsilon is taken"
        return "epsilon", (odd,) if said and said not in NO_PREDICTION else ()
    usual = "epsilon" if contents.sgm else "v_prediction"
    other = "v" if contents.sgm else "eps"
    return usual, (
        f"its prediction type is assumed ({usual}); {shown(file.with_suffix('.yaml').name)} beside it may say "
        f"otherwise, as in model: {{params: {{parameterization: {other}}}}}",
    )


def _parameterization(file: Path) -> str:
    """The parameterization in a Stability configuration; "" where the file is not there. Raises ModelError where it
    cannot be read."""
    remedy = "mend it or take it away"
    with reading(str(file), ModelError, remedy):
        try:
            text = read_text(file, LONGEST_YAML)
        except FileNotFoundError:
            return ""
        content = read_yaml(text, str(file), error=ModelError, remedy=remedy)
        said = content["model"]["params"].get("parameterization", "eps")
    return said.lower() if isinstance(said, str) else "eps"


def _scheduler(config: Path, facts: CheckpointFacts) -> Any:
    described = read_json(config / "scheduler" / "scheduler_config.json")
    described["prediction_type"] = facts.prediction_type
    if facts.zero_snr:
        described |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if described["_class_name"] == "PNDMScheduler":  # it cannot rescale
            described["_class_name"] = "DDIMScheduler"
    return make_model_scheduler(described, facts.family)
