"""Low-rank factors on a UNet (and its text encoders): inject, train, write in the schemes of the wild.

    y = W x + scale * up(down(x)),   scale = alpha / rank

`Adapter` hooks itself onto named modules and takes itself off again; nothing is replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONV = ("conv1", "conv2")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class Adapter(nn.Module):
    """Factors for chosen modules of one network."""

    def __init__(
        self, network: nn.Module, chosen: Callable[[str], bool], rank: int, alpha: float, seed: int
    ) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.rank, self.alpha = rank, alpha
        self.names: list[str] = []
        self.downs, self.ups = nn.ParameterList(), nn.ParameterList()
        self.hooks = []
        for name, module in network.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d) or not chosen(name):
                continue
            shape = module.weight.shape
            down = torch.randn(rank, *shape[1:], generator=g) / math.sqrt(math.prod(shape[1:]))
            up = torch.zeros(shape[0], rank, *(1 for _ in shape[2:]))
            device = module.weight.device
            self.names.append(name)
            self.downs.append(nn.Parameter(down.to(device)))
            self.ups.append(nn.Parameter(up.to(device)))
            self.hooks.append(module.register_forward_hook(self._hook(len(self.names) - 1)))

    def _hook(self, k: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x, scale = inputs[0], self.alpha / self.rank
            if isinstance(module, nn.Conv2d):
                h = F.conv2d(x, self.downs[k], None, module.stride, module.padding)
                return output + scale * F.conv2d(h, self.ups[k])
            return output + scale * F.linear(F.linear(x, self.downs[k]), self.ups[k])

        return add

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def factors(self) -> Iterable[tuple[str, Tensor, Tensor]]:
        for name, down, up in zip(self.names, self.downs, self.ups, strict=True):
            yield name, down.detach().half().cpu().contiguous(), up.detach().half().cpu().contiguous()


def unet_targets(
    blocks: tuple[str, ...] = (), conv: bool = False, attention_only: bool = False
) -> Callable[[str], bool]:
    leaves = ATTENTION if attention_only else LINEAR

    def chosen(name: str) -> bool:
        inside = ".attentions." in name and any(name.endswith("." + leaf) for leaf in leaves)
        inside |= conv and ".resnets." in name and name.rsplit(".", 1)[-1] in CONV
        return inside and (not blocks or any(name.startswith(b + ".") for b in blocks))

    return chosen


def text_targets(name: str) -> bool:
    return ".layers." in f".{name}" and name.rsplit(".", 1)[-1] in TEXT


def sgm_block(name: str) -> str:
    """The original repository's name of a module of the three-level UNet, as in many kohya files.

    down_blocks.b.attentions.i -> input_blocks.(3b+1+i).1, mid_block.attentions.0 -> middle_block.1,
    up_blocks.b.attentions.i -> output_blocks.(3b+i).1; resnets at place 0 of theirs.
    """
    parts = name.split(".")
    place = {"attentions": "1", "resnets": "0"}
    inner = {"conv1": "in_layers.2", "conv2": "out_layers.3"}
    if parts[0] == "mid_block":
        at = "1" if parts[1] == "attentions" else str(2 * int(parts[2]))
        head, rest = f"middle_block.{at}", parts[3:]
    else:
        b, kind, i, rest = int(parts[1]), parts[2], int(parts[3]), parts[4:]
        first = 3 * b + i + (1 if parts[0] == "down_blocks" else 0)
        side = "input_blocks" if parts[0] == "down_blocks" else "output_blocks"
        head = f"{side}.{first}.{place[kind]}"
    tail = ".".join(rest)
    return f"{head}.{inner.get(tail, tail)}"


def write(path: Path, scheme: str, networks: dict[str, Adapter], metadata: dict[str, str]) -> None:
    """Save in one of the naming schemes: "kohya", "kohya-sgm", "peft"."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    if "text_encoder_2" not in networks and metadata.get("ss_base_model_version", "").startswith("sd_v1"):
        prefixes["text_encoder"] = "lora_te"
    tensors: dict[str, Tensor] = {}
    for network, adapter in networks.items():
        for name, down, up in adapter.factors():
            if network != "unet" and not name.startswith("text_model."):
                name = f"text_model.{name}"
            if scheme == "peft":
                # the format has no alpha of its own here: it goes into the factor
                tensors[f"{network}.{name}.lora_A.weight"] = down
                tensors[f"{network}.{name}.lora_B.weight"] = (
                    up.float() * adapter.alpha / adapter.rank
                ).half()
                continue
            if scheme == "kohya-sgm" and network == "unet":
                name = sgm_block(name)
            flat = f"{prefixes[network]}_{name.replace('.', '_')}"
            tensors[f"{flat}.lora_down.weight"] = down
            tensors[f"{flat}.lora_up.weight"] = up
            tensors[f"{flat}.alpha"] = torch.tensor(float(adapter.alpha)).half()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
