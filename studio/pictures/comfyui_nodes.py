"""What ComfyUI's nodes call their inputs, and what the known kinds of nodes do. Tables only.

Core nodes and those of the common packs: Efficiency Nodes, rgthree, Comfyroll, LoRA Manager, Impact and Inspire Pack,
easy-use, WAS, tinyterra, pysssss, KJ, Advanced CLIP Text Encode.
"""

from __future__ import annotations

from collections.abc import Mapping

PIPES = (
    "pipe",
    "basic_pipe",
    "base_basic_pipe",
    "base_ctx",
    "context",
    "ctx",
    "sdxl_tuple",
    "sdxl_pipe",
    "optional_pipe",
    "detailer_pipe",
    "bus",
    "base_sampler",
    "text_embeds",
)
"""Inputs that bring many things at once."""

LINKED: Mapping[str, tuple[str, ...]] = {
    "model": (
        "model_override",
        "optional_model",
        "model",
        "opt_model",
        "model_opt",
        "base_model",
        "unet",
        "model1",
        "model_1",
        "model_a",
        "MODEL",
    ),
    "clip": (
        "clip_override",
        "optional_clip",
        "clip",
        "opt_clip",
        "clip_opt",
        "base_clip",
        "clip1",
        "clip_a",
        "CLIP",
    ),
    "vae": ("vae_override", "optional_vae", "vae", "opt_vae", "vae_opt", "VAE"),
    "positive": (
        "optional_positive",
        "positive",
        "positive_prompt",
        "base_positive",
        "pos",
        "positive_cond",
        "positive_opt",
        "conditioning",
        "cond1",
        "conditioning_1",
        "conditioning1",
        "conditioning_to",
        "cond",
        "CONDITIONING",
        "positive_NEW",
        "cond_NEW",
    ),
    "negative": (
        "optional_negative",
        "negative",
        "negative_prompt",
        "base_negative",
        "neg",
        "negative_cond",
        "negative_opt",
        "conditioning",
        "conditioning_1",
        "conditioning1",
        "conditioning_to",
        "cond",
        "CONDITIONING",
        "negative_NEW",
        "cond_NEW",
    ),
    "latent": (
        "image_to_latent",
        "optional_latent",
        "latent_image",
        "latent",
        "samples",
        "latents",
        "latent_opt",
        "samples_to",
        "samples1",
        "LATENT",
    ),
}
"""Role -> names of the inputs that bring it by a link, the strongest first."""

VALUES: Mapping[str, tuple[str, ...]] = {
    "seed": ("seed", "noise_seed", "optional_noise_seed", "seed_num", "SEED"),
    "steps": ("steps", "base_steps", "steps_total", "STEPS"),
    "cfg": ("cfg", "cfg_conds", "cfg_scale", "CFG"),
    "sampler": ("sampler_name", "sampler", "SAMPLER"),
    "scheduler": ("scheduler", "scheduler_name", "SCHEDULER"),
    "denoise": ("denoise", "denoise_strength"),
    "start": ("start_at_step", "start_step"),
    "end": ("end_at_step", "end_step", "last_step"),
    "add_noise": ("add_noise",),
    "width": ("width", "empty_latent_width", "image_width", "clip_width"),
    "height": ("height", "empty_latent_height", "image_height", "clip_height"),
}
"""Role -> names of the inputs that hold it, as a value or by a link to one."""

VIA: Mapping[str, tuple[str, ...]] = {
    "seed": ("noise",),
    "cfg": ("guider",),
    "steps": ("sigmas",),
    "denoise": ("sigmas",),
    "scheduler": ("sigmas",),
    "sampler": ("sampler",),
    "model": ("guider",),
    "positive": ("guider",),
    "negative": ("guider",),
}
"""Role -> the inputs by which another node is given that holds it."""

NO_GUIDANCE = ("BasicGuider",)
"""Guiders without a negative prompt: their guidance scale is 1."""
PLAIN_GUIDERS = ("CFGGuider", *NO_GUIDANCE, "DualCFGGuider")
"""Guiders that do nothing beside what is read of them."""

SOLVERS: Mapping[str, str] = {
    "SamplerEulerAncestral": "euler_ancestral",
    "SamplerEulerAncestralCFGPP": "euler_ancestral_cfg_pp",
    "SamplerEulerCFGpp": "euler_cfg_pp",
    "SamplerDPMPP_2M_SDE": "dpmpp_2m_sde",
    "SamplerDPMPP_3M_SDE": "dpmpp_3m_sde",
    "SamplerDPMPP_SDE": "dpmpp_sde",
    "SamplerDPMPP_2S_Ancestral": "dpmpp_2s_ancestral",
    "SamplerDPMAdaptative": "dpm_adaptive",
    "SamplerLMS": "lms",
    "SamplerLCMUpscale": "lcm",
    "SamplerER_SDE": "er_sde",
    "SamplerSASolver": "sa_solver",
    "SamplerSEEDS2": "seeds_2",
    "SamplerTCD": "tcd",
}
"""Kind of a node that makes one solver -> the solver's name."""

SPACINGS: Mapping[str, str] = {
    "KarrasScheduler": "karras",
    "ExponentialScheduler": "exponential",
    "PolyexponentialScheduler": "polyexponential",
    "BetaSamplingScheduler": "beta",
    "VPScheduler": "vp",
    "LaplaceScheduler": "laplace",
    "SDTurboScheduler": "sgm_uniform",
    "AlignYourStepsScheduler": "align_your_steps",
    "GITSScheduler": "gits",
    "OptimalStepsScheduler": "optimal_steps",
    "LTXVScheduler": "ltxv",
    "Flux2Scheduler": "flux2",
}
"""Kind of a node that makes sigmas of one spacing -> the spacing's name."""

MODEL_NAMES = (
    "ckpt_name",
    "base_ckpt_name",
    "unet_name",
    "model_path",
    "model_name",
    "checkpoint",
    "ckpt",
    "checkpoint_name",
)
"""Inputs that name the model's file."""

PLAIN_MODEL = ("Reroute", "ImpactWildcardEncode", "Context", "ModelPassThrough", "Wildcard Encode")
"""Kinds that pass a model on as it is, beside those of loaders, pipes and switches."""

PLAIN_CONDITIONING = ("Reroute", "Context", "ConditioningPassThrough", "FromBasicPipe")

PLAIN_IMAGE = (
    "VAEDecode",
    "VAEDecodeTiled",
    "VAEEncode",
    "VAEEncodeTiled",
    "PreviewImage",
    "Reroute",
    "LatentFromBatch",
    "ImageFromBatch",
    "RepeatLatentBatch",
    "Context",
    "Image Comparer (rgthree)",
    "easy imageRemBg",
)
"""Kinds between sampler and saved picture that change nothing."""

EMPTY = ("", "none", "undefined", "null", "no lora", "[none]")
"""What stands where no file is chosen, in small letters."""
BAKED = (*EMPTY, "baked vae", "automatic", "default", "bakedvae", "baked-vae")
"""What stands where the model's own VAE is taken."""

WIDGETS: Mapping[str, tuple[str, ...]] = {
    "KSampler": ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        "add_noise",
        "noise_seed",
        "steps",
        "cfg",
        "sampler_name",
        "scheduler",
        "start_at_step",
        "end_at_step",
        "return_with_leftover_noise",
    ),
    "SamplerCustom": ("add_noise", "noise_seed", "cfg"),
    "RandomNoise": ("noise_seed",),
    "CFGGuider": ("cfg",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "KarrasScheduler": ("steps", "sigma_max", "sigma_min", "rho"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CheckpointLoader": ("config_name", "ckpt_name"),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "VAELoader": ("vae_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoader|pysssss": ("lora_name", "strength_model", "strength_clip"),
    "Lora Loader Stack (rgthree)": tuple(
        f"{name}_0{place}" for place in range(1, 5) for name in ("lora", "strength")
    ),
    "NdSuperLoraLoader": ("lora_bundle",),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": (
        "width",
        "height",
        "crop_w",
        "crop_h",
        "target_width",
        "target_height",
        "text_g",
        "text_l",
    ),
    "CLIPTextEncodeSDXLRefiner": ("ascore", "width", "height", "text"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "LatentUpscale": ("upscale_method", "width", "height", "crop"),
    "LatentUpscaleBy": ("upscale_method", "scale_by"),
    "ImageScale": ("upscale_method", "width", "height", "crop"),
    "SaveImage": ("filename_prefix",),
    "LoadImage": ("image", "upload"),
    "ModelMergeSimple": ("ratio",),
    "ConditioningAverage": ("conditioning_to_strength",),
    "PrimitiveInt": ("value",),
    "PrimitiveFloat": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "StringConcatenate": ("string_a", "string_b", "delimiter"),
    "Seed (rgthree)": ("seed",),
    "Efficient Loader": (
        "ckpt_name",
        "vae_name",
        "clip_skip",
        "lora_name",
        "lora_model_strength",
        "lora_clip_strength",
        "positive",
        "negative",
        "token_normalization",
        "weight_interpretation",
        "empty_latent_width",
        "empty_latent_height",
        "batch_size",
    ),
    "Eff. Loader SDXL": (
        "base_ckpt_name",
        "base_clip_skip",
        "refiner_ckpt_name",
        "refiner_clip_skip",
        "positive_ascore",
        "negative_ascore",
        "vae_name",
        "positive",
        "negative",
        "token_normalization",
        "weight_interpretation",
        "empty_latent_width",
        "empty_latent_height",
        "batch_size",
    ),
    "LoRA Stacker": (
        "input_mode",
        "lora_count",
        *(
            f"{name}_{place}"
            for place in range(1, 51)
            for name in ("lora_name", "lora_wt", "model_str", "clip_str")
        ),
    ),
    "KSampler SDXL (Eff.)": ("noise_seed", "", "steps", "cfg", "sampler_name", "scheduler", "start_at_step"),
    "KSampler (Efficient)": (
        "seed",
        "",
        "steps",
        "cfg",
        "sampler_name",
        "scheduler",
        "denoise",
        "preview_method",
        "vae_decode",
    ),
    "CR LoRA Stack": (
        "switch_1",
        "lora_name_1",
        "model_weight_1",
        "clip_weight_1",
        "switch_2",
        "lora_name_2",
        "model_weight_2",
        "clip_weight_2",
        "switch_3",
        "lora_name_3",
        "model_weight_3",
        "clip_weight_3",
    ),
}
"""Kind -> its values in the order in which a drawn workflow lists them; "" is one without a name."""
