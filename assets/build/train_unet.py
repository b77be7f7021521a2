"""Train a UNet and its text encoders on latents of rendered scenes.

    python assets/build/train_unet.py --work WORK --family sdxl --seconds 560 --device cuda
    python assets/build/train_unet.py --work WORK --family sd1  --seconds 110 --device cuda

Needs WORK/art.npz and WORK/vae.safetensors; writes WORK/unet-FAMILY.safetensors (fp16, the moving
average, text encoders included) every minute and at the end. `--resume` starts from that file with
fresh optimiser moments. Combinations that the hold-out rule names never enter the training.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import random
import time
from pathlib import Path

import models
import numpy as np
import tokenizer
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from world import World, caption, sample

CAPTIONS = 2  # different descriptions of every picture


def _tokens(job: tuple[int, np.ndarray]) -> np.ndarray:
    seed, rows = job
    rng = random.Random(seed)
    texts = [[tokenizer.encode(caption(r, rng)) for _ in range(CAPTIONS)] for r in rows.tolist()]
    return np.array(texts, np.int16)


def describe(rows: np.ndarray, seed: int, workers: int) -> np.ndarray:
    """[n, 7] -> [n, CAPTIONS, 77] token ids."""
    jobs = [
        (seed * 100_003 + k, part) for k, part in enumerate(np.array_split(rows, max(1, len(rows) // 4000)))
    ]
    if workers < 2:
        return np.concatenate([_tokens(j) for j in jobs])
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return np.concatenate(pool.map(_tokens, jobs))


def alphas_cumprod(device: str) -> Tensor:
    b = models.BETAS
    betas = torch.linspace(b["beta_start"] ** 0.5, b["beta_end"] ** 0.5, 1000) ** 2  # type: ignore[operator]
    return (1 - betas).cumprod(0).to(device)


class Objective(nn.Module):
    """The v-prediction loss of a batch, text encoders included."""

    def __init__(self, family: str, device: str) -> None:
        super().__init__()
        self.family = family
        self.unet = models.unet(family)
        self.texts = models.texts(family)
        self.pad_2 = tokenizer.tables()[0]["!"]
        self.end = tokenizer.tables()[0][tokenizer.EOS]
        self.register_buffer("alphas", alphas_cumprod("cpu"), persistent=False)
        self.register_buffer("sizes", torch.tensor([128.0, 128, 0, 0, 128, 128]), persistent=False)
        self.to(device)

    def condition(self, ids: Tensor, zero: Tensor) -> tuple[Tensor, dict[str, Tensor] | None]:
        """ids [n, 77], zero [n] (1 where the text is replaced by zeros)."""
        if self.family != "sdxl":
            return models.encode_text(self.texts["text_encoder"], ids)[1], None
        ended = (ids == self.end).int().cumsum(1) > 1
        ids_2 = torch.where(ended, self.pad_2, ids)
        one = models.encode_text(self.texts["text_encoder"], ids)[0]
        two, _, pooled = models.encode_text(self.texts["text_encoder_2"], ids_2)
        keep = (1 - zero)[:, None]
        hidden = torch.cat([one, two], -1) * keep[..., None]
        return hidden, {"text_embeds": pooled * keep, "time_ids": self.sizes.expand(len(ids), 6)}

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        steps: Tensor,
        ids: Tensor,
        zero: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The mean square error; weight [n, 1, 32, 32]: how much each place of it counts."""
        a = self.alphas[steps].sqrt()[:, None, None, None]
        s = (1 - self.alphas[steps]).sqrt()[:, None, None, None]
        hidden, added = self.condition(ids, zero)
        noisy = (a * latents + s * noise).to(self.unet.dtype)
        v = self.unet(noisy, steps, hidden, added_cond_kwargs=added, return_dict=False)[0]
        target = a * noise - s * latents
        if weight is None:
            return F.mse_loss(v.float(), target)
        return ((v.float() - target).square() * weight).mean() / weight.mean()


class HalfStep:
    """Gradients from a bf16 copy of the model: compiled, and replayed as one CUDA graph, on a GPU.

    The trained weights stay in fp32; the copy is refreshed from them before every step. Where the
    compiler fails the plain step is captured; a step that cannot be captured at all is an error.
    """

    def __init__(self, model: Objective, batch: int, device: str) -> None:
        self.master = [p for n, p in model.named_parameters() if not self._idle(n, model)]
        self.copy = copy.deepcopy(model)
        self.copy.unet.bfloat16()
        self.copy.texts.bfloat16()
        self.weights = [p for n, p in self.copy.named_parameters() if not self._idle(n, model)]
        for p in self.master:
            p.grad = torch.zeros_like(p)
        self.inputs = (
            torch.zeros(batch, 4, 32, 32, device=device),
            torch.zeros(batch, 4, 32, 32, device=device),
            torch.zeros(batch, dtype=torch.long, device=device),
            torch.full((batch, 77), model.end, device=device),
            torch.zeros(batch, device=device),
        )
        self.run: nn.Module = self.copy
        self.graph: torch.cuda.CUDAGraph | None = None
        if device == "cuda":
            try:
                self.run = torch.compile(self.copy)  # type: ignore[assignment]
                self._capture()
            except Exception as error:  # whatever the compiler raises: the plain step does the same
                print("not compiled:", str(error)[:400], flush=True)
                torch.cuda.synchronize()
                self.run = self.copy
                self._capture()

    @staticmethod
    def _idle(name: str, model: Objective) -> bool:
        """SDXL reads its first text encoder before the last layer, which gets no gradient."""
        if model.family != "sdxl" or ".text_encoder." not in f".{name}":
            return False
        last = model.texts["text_encoder"].config.num_hidden_layers - 1
        return "final_layer_norm" in name or f".layers.{last}." in name

    def _once(self) -> Tensor:
        loss = self.run(*self.inputs)
        grads = torch.autograd.grad(loss, self.weights)
        with torch.no_grad():
            torch._foreach_copy_([p.grad for p in self.master], list(grads))
        return loss.detach()

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._once()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.loss = self._once()
        self.graph = graph
        print("step captured as a graph", flush=True)

    def __call__(self, *inputs: Tensor) -> Tensor:
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.master)
            for mine, given in zip(self.inputs, inputs, strict=True):
                mine.copy_(given)
        if self.graph is not None:
            self.graph.replay()
        else:
            self.loss = self._once()
        return self.loss


def start_texts_from(path: Path, model: Objective) -> None:
    """Give the text encoder the first layers and the embeddings of an already trained one."""
    from safetensors.torch import load_file

    own = model.texts["text_encoder"].state_dict()
    taken = {k.removeprefix("text_encoder."): v.float() for k, v in load_file(path).items()}
    taken = {k: v for k, v in taken.items() if k in own and "final_layer_norm" not in k}
    print(f"{len(taken)} of {len(own)} text tensors taken over", flush=True)
    model.texts["text_encoder"].load_state_dict({**own, **taken})


def latents_of(rows: np.ndarray, work: Path, device: str, seed: int) -> Tensor:
    """[n, 7] -> latents [n, 4, 32, 32] in fp16, standardised."""
    world = World(work / "art.npz", device)
    vae = models.load_vae(work).to(device)
    g = torch.Generator(device).manual_seed(seed)
    dtype = torch.float16 if device == "cuda" else torch.float32
    out = torch.empty(len(rows), 4, 32, 32, dtype=dtype, device=device)
    vae.to(dtype)
    with torch.inference_mode():
        for at in range(0, len(rows), 512):
            pictures = world.render(rows[at : at + 512], g).to(dtype)
            out[at : at + 512] = vae.encode(pictures * 2 - 1).latent_dist.mean * models.SCALING
    return out.clone()


def save(path: Path, model: Objective) -> None:
    models.save_weights(path.with_suffix(".part"), {"unet": model.unet, **model.texts})
    path.with_suffix(".part").rename(path)


def train(
    work: Path,
    family: str,
    seconds: float,
    device: str,
    batch: int,
    pictures: int,
    lr: float,
    seed: int,
    resume: bool,
    tail: float = 0.4,
    start_at: float = 0,
    half: bool = False,
    texts_from: Path | None = None,
    save_every: float = 60,
) -> None:
    born = time.time()
    cuda = device == "cuda"
    numbers = np.random.default_rng(seed)
    rows = sample(pictures, numbers)
    ids = torch.from_numpy(describe(rows, seed, 14 if cuda else 1))
    empty = torch.tensor(tokenizer.encode(""))
    print(f"captions after {time.time() - born:.0f} s", flush=True)
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = Objective(family, device)
    path = work / f"unet-{family}.safetensors"
    if resume:
        models.load_weights(path, {"unet": model.unet, **model.texts})
    if texts_from:
        start_texts_from(texts_from, model)
    average = copy.deepcopy(model)
    run: nn.Module | HalfStep = model
    if half:
        run = HalfStep(model, batch, device)
    elif cuda:
        torch._dynamo.config.suppress_errors = True
        run = torch.compile(model)  # type: ignore[assignment]
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=cuda)
    weights, means = list(model.parameters()), list(average.parameters())
    latents = latents_of(rows, work, device, seed)
    ids, empty = ids.to(device), empty.to(device)
    flat = latents[:4096].float()
    print(
        f"{pictures} latents after {time.time() - born:.0f} s, "
        f"mean {flat.mean((0, 2, 3)).tolist()} std {flat.std((0, 2, 3)).tolist()}",
        flush=True,
    )
    g = torch.Generator(device).manual_seed(seed)
    if start_at:  # the GPU is another step's until then; a late start does not move the end
        early = start_at - time.time()
        print(f"ready {early:.0f} s early", flush=True)
        time.sleep(max(0.0, early))
        seconds = max(seconds / 2, seconds + min(0.0, early))
    start, saved, step, shown, total = time.time(), time.time(), 0, 0, torch.zeros((), device=device)
    order = torch.randperm(pictures, device=device, generator=g)
    while (passed := (time.time() - start) / seconds) < 1:
        rate = lr * min(1.0, (step + 1) / 300, (1 - passed) / tail + 0.002)
        for group in optimiser.param_groups:
            group["lr"] = rate
        at = step * batch % pictures
        if at + batch > pictures:
            order = torch.randperm(pictures, device=device, generator=g)
            at = 0
        pick = order[at : at + batch]
        drop = torch.rand(batch, device=device, generator=g)
        which = torch.randint(CAPTIONS, (batch,), device=device, generator=g)
        text = torch.where((drop < 0.06)[:, None], empty, ids[pick, which].long())
        zero = ((drop >= 0.06) & (drop < 0.12)).float()
        x = latents[pick].float()
        noise = torch.randn(x.shape, device=device, generator=g)
        strata = (torch.arange(batch, device=device) + torch.rand(batch, device=device, generator=g)) / batch
        steps = (strata * 1000).long().clamp_max(999)
        if half:
            loss = run(x, noise, steps, text, zero)
        else:
            with torch.autocast(device, torch.bfloat16, enabled=cuda):
                loss = run(x, noise, steps, text, zero)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=cuda)
        optimiser.step()
        step += 1
        with torch.no_grad():
            keep = min(0.9993, (step + 1) / (step + 10))
            torch._foreach_lerp_(means, weights, 1 - keep)
        total += loss.detach()
        if step % (250 if cuda else 2) == 0:
            count = step - shown
            print(
                f"{family} step {step} loss {float(total) / count:.4f} "
                f"{step / (time.time() - start):.2f} steps/s {time.time() - start:.0f} s",
                flush=True,
            )
            total.zero_()
            shown = step
        if time.time() - saved > save_every:
            save(path, average)
            saved = time.time()
    save(path, average)
    print(
        f"{family}: {step} steps of {batch}; held-out loss {held_out_loss(average, work, device, cuda):.4f}",
        flush=True,
    )


@torch.no_grad()
def held_out_loss(model: Objective, work: Path, device: str, cuda: bool) -> float:
    n = 4096 if cuda else 8
    rows = sample(n, np.random.default_rng(20_000), only_held_out=True)
    rng = random.Random(20_000)
    ids = torch.tensor([tokenizer.encode(caption(r, rng, drop=0.0)) for r in rows.tolist()], device=device)
    latents = latents_of(rows, work, device, 20_000).float()
    g = torch.Generator(device).manual_seed(20_000)
    total = 0.0
    for at in range(0, n, 512):
        x = latents[at : at + 512]
        noise = torch.randn(x.shape, device=device, generator=g)
        steps = torch.randint(1000, (len(x),), device=device, generator=g)
        total += float(model(x, noise, steps, ids[at : at + 512], torch.zeros(len(x), device=device))) * len(
            x
        )
    return total / n


def warm(family: str, batch: int, count: int) -> None:
    """Compile the step on random data, so that the run itself finds it in the compiler's cache."""
    torch._dynamo.config.suppress_errors = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = Objective(family, "cuda")
    for name, run in (("eager", model), ("compiled", torch.compile(model))):
        times = []
        for _ in range(count):
            torch.cuda.synchronize()
            begin = time.time()
            x = torch.randn(batch, 4, 32, 32, device="cuda")
            ids = torch.randint(512, 1100, (batch, 77), device="cuda")
            ids[:, 40:] = tokenizer.tables()[0][tokenizer.EOS]
            with torch.autocast("cuda", torch.bfloat16):
                loss = run(
                    x,
                    torch.randn_like(x),
                    torch.randint(1000, (batch,), device="cuda"),
                    ids,
                    torch.zeros(batch, device="cuda"),
                )
            loss.backward()
            torch.cuda.synchronize()
            times.append(time.time() - begin)
        print(
            f"{family} {name}: first {times[0]:.1f} s, "
            f"then {1e3 * sorted(times[1:])[len(times) // 2]:.0f} ms a step of {batch}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--family", choices=["sdxl", "sd1"], default="sdxl")
    parser.add_argument("--seconds", type=float, default=560)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=384)
    parser.add_argument("--pictures", type=int, default=400_000)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--warm", type=int, default=0)
    parser.add_argument("--half", action="store_true", help="bf16 copy, one CUDA graph a step")
    parser.add_argument("--texts-from", type=Path)
    parser.add_argument("--save-every", type=float, default=60)
    parser.add_argument("--tail", type=float, default=0.4, help="part of the run over which the rate falls")
    parser.add_argument("--start-at", type=float, default=0, help="not before this second of the epoch")
    args = parser.parse_args()
    if args.warm:
        warm(args.family, args.batch, args.warm)
    else:
        train(
            args.work,
            args.family,
            args.seconds,
            args.device,
            args.batch,
            args.pictures,
            args.lr,
            args.seed,
            args.resume,
            tail=args.tail,
            start_at=args.start_at,
            half=args.half,
            texts_from=args.texts_from,
            save_every=args.save_every,
        )
