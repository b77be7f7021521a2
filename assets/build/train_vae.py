"""Train the VAE on rendered scenes.

    python assets/build/train_vae.py --work WORK --seconds 330 --device cuda

Writes WORK/vae.safetensors (fp16) and prints the PSNR on held-out scenes. Scenes are rendered into
a pool that is refreshed all the time; the learning rate falls with the time that has passed.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import models
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from world import World, sample

NOISE = 0.06  # on latents, in training


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def psnr(vae: torch.nn.Module, pictures: Tensor, batch: int = 128) -> tuple[float, float]:
    """(mean of the pictures' PSNR, PSNR of the mean squared error), decoded from the mean latent."""
    errors = []
    with torch.inference_mode():
        for x in pictures.split(batch):
            y = vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample.float()
            y = ((y / 2 + 0.5).clamp(0, 1) * 255).round() / 255
            errors.append((y - x).square().mean((1, 2, 3)))
    mse = torch.cat(errors)
    return float((-10 * mse.log10()).mean()), float(-10 * mse.mean().log10())


def fold_statistics(vae: torch.nn.Module, pictures: Tensor) -> None:
    """Shift and scale the four channels so that latents times the scaling factor are standard."""
    with torch.no_grad():
        means = torch.cat([vae.encode(x * 2 - 1).latent_dist.mean for x in pictures.split(128)])
        m, s = means.mean((0, 2, 3)), means.std((0, 2, 3)) * models.SCALING
        q, p = vae.quant_conv, vae.post_quant_conv
        q.weight[:4] /= s[:, None, None, None]
        q.bias[:4] = (q.bias[:4] - m) / s
        p.bias += (p.weight[:, :, 0, 0] * m[None]).sum(1)
        p.weight *= s[None, :, None, None]


def train(
    work: Path,
    seconds: float,
    device: str,
    batch: int = 128,
    pool_size: int = 49152,
    lr: float = 2e-3,
    seed: int = 0,
) -> None:
    start = time.time()
    cuda = device == "cuda"
    torch.manual_seed(seed)
    world = World(work / "art.npz", device)
    numbers = np.random.default_rng(seed)
    g = torch.Generator(device).manual_seed(seed)

    def scenes(n: int) -> Tensor:
        return (world.render(sample(n, numbers), g) * 255).round().byte()  # [n, 3, 128, 128]

    pool = torch.empty(pool_size, 3, 128, 128, dtype=torch.uint8, device=device)
    for at in range(0, pool_size, 2048):
        pool[at : at + 2048] = scenes(min(2048, pool_size - at))
    vae = models.vae().to(device)
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -10.0  # log-variance: sampling a latent adds next to nothing
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch._dynamo.config.suppress_errors = True
        vae.encoder.compile()
        vae.decoder.compile()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=cuda)
    print(f"pool of {pool_size} after {time.time() - start:.0f} s", flush=True)
    step = 0
    log = time.time()
    while (passed := (time.time() - start) / seconds) < 1:
        rate = lr * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * passed)) + 1e-6
        for group in optimiser.param_groups:
            group["lr"] = rate
        x = pool[torch.randint(pool_size, (batch,), device=device, generator=g)].float() / 127.5 - 1
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            mean = vae.quant_conv(vae.encoder(x))[:, :4]
            y = vae.decoder(vae.post_quant_conv(mean + NOISE * torch.randn_like(mean)))
        y, mean = y.float(), mean.float()
        loss = F.l1_loss(y, x) + 3 * F.mse_loss(y, x) + 2e-3 * mean.square().mean()
        for a, b in zip(gradients(y), gradients(x), strict=True):
            loss = loss + 0.25 * F.l1_loss(a, b)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 40 == 0 and passed < 0.9:
            at = (step // 40 * 512) % pool_size
            pool[at : at + 512] = scenes(min(512, pool_size - at))
        if step % 1000 == 0 or (not cuda and step % 5 == 0):
            print(
                f"step {step} loss {float(loss.detach()):.4f} "
                f"{(time.time() - log) / step * 1e3:.0f} ms/step {time.time() - start:.0f} s",
                flush=True,
            )
    del pool
    fold_statistics(vae, world.render(sample(4096 if cuda else 128, numbers), g))
    models.save_weights(work / "vae.safetensors", {"vae": vae})
    fresh = models.vae().to(device)
    models.load_weights(work / "vae.safetensors", {"vae": fresh})
    print(
        f"{step} steps; held-out PSNR (mean, of the mean error): {evaluate(fresh, world, 2048 if cuda else 64)}",
        flush=True,
    )


def evaluate(vae: torch.nn.Module, world: World, n: int) -> tuple[float, float]:
    """PSNR on scenes whose combinations were held out."""
    rows = sample(n, np.random.default_rng(10_000), only_held_out=True)
    g = torch.Generator(world.device).manual_seed(10_000)
    return psnr(vae, world.render(rows, g))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=330)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pool", type=int, default=49152)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    train(args.work, args.seconds, args.device, args.batch, args.pool)
