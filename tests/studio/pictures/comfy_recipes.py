"""Writes one recipe as many graphs of ComfyUI, with the nodes of different packs."""

from __future__ import annotations

import random
from typing import Any

from .comfy_writer import Link, Recipe, Writer, lora_chain, stack


def graph(recipe: Recipe, seed: int) -> dict[str, Any]:
    """One graph for a recipe; another one for each seed."""
    write = Writer(random.Random(seed))
    dice = write.dice
    road = dice.choice(["core", "core", "efficient", "easy", "context", "pipe"])
    if road == "efficient":
        sampler = _efficient(write, recipe)
    elif road == "easy":
        sampler = _easy(write, recipe)
    else:
        sampler = _core(write, recipe, road)
    samples, vae = sampler
    if dice.random() < 0.3:
        write.add(
            "LoraLoader",
            lora_name="unlinked.safetensors",
            strength_model=1.0,
            strength_clip=1.0,
            model=[write.add("CheckpointLoaderSimple", ckpt_name="another.safetensors"), 0],
        )
    image = [write.add("VAEDecode", samples=samples, vae=vae), 0] if samples else vae
    kind = dice.choice(["SaveImage", "Image Save", "SaveImageWebsocket", "PreviewImage"])
    write.add(kind, filename_prefix="ComfyUI", images=image)
    items = list(write.nodes.items())
    if dice.random() < 0.5:
        dice.shuffle(items)
    return dict(items)


def _vae(write: Writer, recipe: Recipe, own: Link) -> Link:
    return [write.add("VAELoader", vae_name=recipe.vae), 0] if recipe.vae else own


def _encoded(write: Writer, words: str, clip: Link) -> Link:
    kind = write.dice.choice(
        [
            "CLIPTextEncode",
            "CLIPTextEncode",
            "CLIPTextEncodeSDXL",
            "BNK_CLIPTextEncodeAdvanced",
            "smZ CLIPTextEncode",
            "ImpactWildcardEncode",
        ]
    )
    if kind == "CLIPTextEncodeSDXL":
        node = write.add(kind, text_g=write.words(words), text_l=words, clip=clip)
    elif kind == "ImpactWildcardEncode":
        node = write.add(kind, wildcard_text="{a|b}", populated_text=words, mode="fixed", clip=clip, seed=1)
        return [node, 2]
    elif kind == "smZ CLIPTextEncode":
        node = write.add(
            kind, text=write.words(words), parser="comfy", text_g="", text_l="", with_SDXL=False, clip=clip
        )
    else:
        node = write.add(kind, text=write.words(words), clip=clip)
    found: Link = [node, 0]
    if write.dice.random() < 0.2:
        found = [write.add("Reroute", **{"": found}), 0]
    return found


def _core(write: Writer, recipe: Recipe, road: str) -> tuple[Link, Link]:
    dice = write.dice
    name: Any = recipe.model
    if dice.random() < 0.3:
        name = [write.add("easy ckptNames", ckpt_name=name), 0]
    loader = write.add(dice.choice(["CheckpointLoaderSimple", "CheckpointLoader|pysssss"]), ckpt_name=name)
    model, clip = lora_chain(write, recipe, [loader, 0], [loader, 1])
    if recipe.clip_skip:
        clip = [write.add("CLIPSetLastLayer", stop_at_clip_layer=-recipe.clip_skip - 1, clip=clip), 0]
    positive, negative = _encoded(write, recipe.prompt, clip), _encoded(write, recipe.negative, clip)
    latent: Link = [
        write.add(
            dice.choice(["EmptyLatentImage", "EmptySD3LatentImage"]),
            width=write.whole(recipe.width),
            height=write.whole(recipe.height),
            batch_size=1,
        ),
        0,
    ]
    vae = _vae(write, recipe, [loader, 2])
    if road == "context":
        first = write.add("Context (rgthree)", model=model, clip=clip, vae=vae)
        second = write.add("Context (rgthree)", base_ctx=[first, 0], positive=positive, negative=negative)
        switch = write.add("Context Switch (rgthree)", ctx_02=[second, 0])
        model, positive, negative, vae = ([switch, slot] for slot in (1, 4, 5, 3))
    if road == "pipe":
        pipe = write.add("ToBasicPipe", model=model, clip=clip, vae=vae, positive=positive, negative=negative)
        if dice.random() < 0.5:
            node = write.add(
                "ImpactKSamplerBasicPipe",
                basic_pipe=[pipe, 0],
                seed=write.whole(recipe.seed, "seed"),
                steps=write.whole(recipe.steps),
                cfg=recipe.cfg,
                sampler_name=recipe.sampler,
                scheduler=recipe.spacing,
                latent_image=latent,
                denoise=1.0,
            )
            return [node, 1], [node, 2]
        away = write.add("FromBasicPipe", basic_pipe=[pipe, 0])
        model, positive, negative = ([away, slot] for slot in (0, 3, 4))
    return [_sampled(write, recipe, model, positive, negative, latent), 0], vae


def _sampled(write: Writer, recipe: Recipe, model: Link, positive: Link, negative: Link, latent: Link) -> str:
    dice = write.dice
    kind = dice.choice(
        ["KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced", "KSampler //Inspire"]
    )
    seed, steps = write.whole(recipe.seed, "seed"), write.whole(recipe.steps)
    both = {"positive": positive, "negative": negative}
    if kind in ("KSampler", "KSampler //Inspire"):
        return write.add(
            kind,
            model=model,
            seed=seed,
            steps=steps,
            cfg=recipe.cfg,
            sampler_name=recipe.sampler,
            scheduler=recipe.spacing,
            latent_image=latent,
            denoise=1.0,
            **both,
        )
    if kind == "KSamplerAdvanced":
        return write.add(
            kind,
            model=model,
            add_noise="enable",
            noise_seed=seed,
            steps=steps,
            cfg=recipe.cfg,
            sampler_name=recipe.sampler,
            scheduler=recipe.spacing,
            start_at_step=0,
            end_at_step=10000,
            return_with_leftover_noise="disable",
            latent_image=latent,
            **both,
        )
    solver = [write.add("KSamplerSelect", sampler_name=recipe.sampler), 0]
    if recipe.spacing == "karras" and dice.random() < 0.5:
        sigmas = [write.add("KarrasScheduler", steps=steps, sigma_max=14.6, sigma_min=0.03, rho=7.0), 0]
    else:
        sigmas = [
            write.add("BasicScheduler", scheduler=recipe.spacing, steps=steps, denoise=1.0, model=model),
            0,
        ]
    if kind == "SamplerCustom":
        return write.add(
            kind,
            add_noise=True,
            noise_seed=seed,
            cfg=recipe.cfg,
            model=model,
            sampler=solver,
            sigmas=sigmas,
            latent_image=latent,
            **both,
        )
    guider = [write.add("CFGGuider", cfg=recipe.cfg, model=model, **both), 0]
    noise = [write.add("RandomNoise", noise_seed=seed), 0]
    return write.add(kind, noise=noise, guider=guider, sampler=solver, sigmas=sigmas, latent_image=latent)


def _efficient(write: Writer, recipe: Recipe) -> tuple[Link, Link]:
    loras = {"lora_stack": stack(write, recipe)} if recipe.loras else {}
    node = write.add(
        "Efficient Loader",
        ckpt_name=recipe.model,
        vae_name=recipe.vae or "Baked VAE",
        clip_skip=-recipe.clip_skip - 1,
        lora_name="None",
        lora_model_strength=1.0,
        lora_clip_strength=1.0,
        positive=write.words(recipe.prompt),
        negative=write.words(recipe.negative),
        token_normalization="none",
        weight_interpretation="comfy",
        empty_latent_width=recipe.width,
        empty_latent_height=recipe.height,
        batch_size=1,
        **loras,
    )
    out = [[node, slot] for slot in range(7)]
    sampler = write.add(
        "KSampler (Efficient)",
        seed=write.whole(recipe.seed, "seed"),
        steps=write.whole(recipe.steps),
        cfg=recipe.cfg,
        sampler_name=recipe.sampler,
        scheduler=recipe.spacing,
        denoise=1.0,
        preview_method="none",
        vae_decode="true",
        model=out[0],
        positive=out[1],
        negative=out[2],
        latent_image=out[3],
        optional_vae=out[4],
    )
    return [], [sampler, 5]


def _easy(write: Writer, recipe: Recipe) -> tuple[Link, Link]:
    loras = {"optional_lora_stack": stack(write, recipe)} if recipe.loras else {}
    preset = write.dice.random() < 0.5
    loader = write.add(
        "easy fullLoader",
        ckpt_name=recipe.model,
        config_name="Default",
        vae_name=recipe.vae or "Baked VAE",
        clip_skip=-recipe.clip_skip - 1,
        lora_name="None",
        lora_model_strength=1.0,
        lora_clip_strength=1.0,
        resolution=f"{recipe.width} x {recipe.height}" if preset else "width x height (custom)",
        empty_latent_width=64 if preset else recipe.width,
        empty_latent_height=64 if preset else recipe.height,
        positive=recipe.prompt,
        negative=recipe.negative,
        batch_size=1,
        **loras,
    )
    sampling = {
        "steps": recipe.steps,
        "cfg": recipe.cfg,
        "sampler_name": recipe.sampler,
        "scheduler": recipe.spacing,
        "denoise": 1.0,
        "seed": write.whole(recipe.seed, "seed"),
    }
    if write.dice.random() < 0.5:
        ready = write.add("easy preSampling", pipe=[loader, 0], **sampling)
        sampler = write.add(
            "easy kSampler", pipe=[ready, 0], image_output="Hide", link_id=0, save_prefix="ComfyUI"
        )
    else:
        sampler = write.add(
            "easy fullkSampler", pipe=[loader, 0], image_output="Hide", link_id=0, save_prefix="x", **sampling
        )
    return [], [sampler, 1]
