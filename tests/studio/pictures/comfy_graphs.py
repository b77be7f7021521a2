"""A plain graph of ComfyUI, and what it says with changes."""

from __future__ import annotations

import json
from typing import Any

from studio.pictures.comfyui import Graphed, read_comfyui


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


BASE: dict[str, dict[str, Any]] = {
    "4": node("CheckpointLoaderSimple", ckpt_name="m.safetensors"),
    "5": node("EmptyLatentImage", width=640, height=512, batch_size=1),
    "6": node("CLIPTextEncode", text="a fox", clip=["4", 1]),
    "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
    "3": node("KSampler", seed=11, steps=25, cfg=5.5, sampler_name="dpmpp_2m", scheduler="karras", denoise=1,
              model=["4", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0]),
    "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
    "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
}  # fmt: skip


def read(
    more: dict[str, Any] | None = None, *, name: str = "a.png", drawn: Any = None, **sampler: Any
) -> Graphed:
    """What the plain graph says, with other or further nodes. sampler: changed inputs of its sampler, node 3."""
    nodes = BASE | (more or {})
    if sampler:
        nodes = nodes | {"3": node(nodes["3"]["class_type"], **nodes["3"]["inputs"] | sampler)}
    texts = {"prompt": json.dumps(nodes)} | ({} if drawn is None else {"workflow": json.dumps(drawn)})
    found = read_comfyui(name, texts)
    assert found is not None
    return found
