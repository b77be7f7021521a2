"""Regional compilation: torch.compile for a UNet's repeated blocks, for exact shapes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "Transformer2DModel", "Upsample2D", "Downsample2D")
"""The diffusers classes that are compiled. Of a Transformer2DModel, only its two ends are (`CompiledTransformer`)."""
MOST_SHAPES = 256
"""Compiled versions of one block: one for each width, number of rows and number of tokens that it meets."""

LONGEST_ROW = 2048
"""The longest row, in numbers, that a norm keeps in registers. Inductor's own limit is 1024. It reads longer rows, such
as SDXL's of 1280, once for every pass over them, which is half as fast (measured)."""

Backend = str | Callable[..., Any]


def arguments(backend: Backend = "inductor", options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of torch.compile for exact shapes.

    options: inductor's. Where CUDA is available, inductor also follows `_long_rows`.
    """
    if (
        backend == "inductor" and torch.cuda.is_available()
    ):  # not the weights' device: they may rest on the host
        backend, options = _inductor(tuple(dict(options or {}).items())), None
    return {
        "fullgraph": True,
        "dynamic": False,
        "backend": backend,
        "options": dict(options) if options else None,
    }


@cache
def _inductor(options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """The backend with these options and `_long_rows`; one object for all models: torch compiles anew for another."""

    def inductor(graph: Any, inputs: Any) -> Any:
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.virtualized import V

        # A thread keeps the heuristics of its first compilation, whatever the option says; so they are set here. The
        # option is needed too: it is part of the key by which inductor caches compiled code.
        with V.set_choices_handler(_long_rows()):
            patches = dict(options) | {"inductor_choices_class": _long_rows}
            return compile_fx(graph, inputs, config_patches=patches)

    return inductor


def _long_rows() -> Any:
    """Inductor's heuristics, with `LONGEST_ROW` for its own limit."""
    from torch._inductor.choices import InductorChoices
    from torch._inductor.runtime.hints import ReductionHint
    from torch._inductor.virtualized import V

    class LongRows(InductorChoices):
        @staticmethod
        def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
            if InductorChoices.should_use_persistent_reduction(features, cooperative_reduction):
                return True
            if cooperative_reduction or features.get_reduction_hint() != ReductionHint.INNER:
                return False
            return bool(V.graph.sizevars.statically_known_leq(features.reduction_numel, LONGEST_ROW))

        def uuid(self) -> str:
            return f"rows of {LONGEST_ROW}"

    return LongRows()


def compile_blocks(
    unet: nn.Module,
    backend: Backend = "inductor",
    options: Mapping[str, Any] | None = None,
    classes: Collection[str] = BLOCKS,
) -> None:
    """Compile the repeated blocks in place. Each new shape is compiled when it is first met.

    options: as in `arguments`. classes: those of `BLOCKS` to compile; the norms between the blocks are always compiled.
    A hook within a block must be there before its shape is first met: torch does not see later ones.

    This changes two settings of torch for the whole process. The limit of compiled versions is raised to `MOST_SHAPES`.
    Guards by recursive dict tags are switched off: until torch 2.12, which switches them off itself, they crash the
    process after a compiled model has been freed (https://github.com/pytorch/pytorch/pull/181873).
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_SHAPES)
    config.use_recursive_dict_tags_for_guards = False
    how = arguments(backend, options)
    if "Transformer2DModel" in classes:
        ends = Ends.compiled(how)
        for module in unet.modules():
            if type(module) is Transformer2DModel and module.is_input_continuous:
                module.__class__ = CompiledTransformer
                cast(CompiledTransformer, module).ends = ends
    for block in _blocks(unet, classes):
        block.compile(**how)


def uncompile_blocks(unet: nn.Module) -> None:
    """Undo `compile_blocks`, in place."""
    for module in unet.modules():
        if isinstance(module, CompiledTransformer):
            del module.ends
            module.__class__ = Transformer2DModel
    for block in _blocks(unet, BLOCKS):
        block.__dict__.pop("_compiled_call_impl", None)


def _blocks(unet: nn.Module, classes: Collection[str]) -> Iterator[nn.Module]:
    """The blocks that are compiled as a whole, and the norms outside of them."""
    for module in unet.modules():
        name = type(module).__name__
        if name in ("Transformer2DModel", "UNet2DConditionModel"):
            norm = getattr(module, "norm" if name == "Transformer2DModel" else "conv_norm_out", None)
            if isinstance(norm, nn.GroupNorm):
                yield norm
        elif name in classes:
            yield module


# -- the ends of a stack of transformer blocks -----------------------------------------------------------


@dataclass(frozen=True)
class Ends:
    """The compiled first and last part of a Transformer2DModel's call. Both take the model as their first argument."""

    enter: Callable[..., Any]
    leave: Callable[..., Tensor]

    @classmethod
    def compiled(cls, how: Mapping[str, Any]) -> Ends:
        """how: `arguments`."""
        return cls(torch.compile(_enter, **how), torch.compile(_leave, **how))


def _enter(stack: Any, image: Tensor) -> Any:
    """diffusers' first part, but with the tokens made contiguous for a Linear. Otherwise it would copy them once for
    every product that a lane layer makes of them, and add its bias in a pass of its own."""
    if not stack.use_linear_projection:
        return Transformer2DModel._operate_on_continuous_inputs(stack, image)
    tokens = stack.norm(image).flatten(2).mT.contiguous()  # [rows, h * w, channels]
    return stack.proj_in(tokens), image.shape[1]


def _leave(stack: Any, hidden_states: Tensor, residual: Tensor, *sizes: int) -> Tensor:
    """diffusers' last part, its result in the memory format of the image that came in."""
    found: Tensor = Transformer2DModel._get_output_for_continuous_inputs(
        stack, hidden_states, residual, *sizes
    )
    last = torch.channels_last
    if residual.is_contiguous(memory_format=last) and not residual.is_contiguous():
        return found.contiguous(memory_format=last)
    return found


class CompiledTransformer(Transformer2DModel):
    """diffusers' Transformer2DModel with compiled ends.

    The ends lead from the image [rows, channels, h, w] to tokens [rows, h * w, width], and back. Each is compiled
    together with the norm or the sum next to it, so that no tensor is written only to change its layout.

    It is the model's own module with its class exchanged. Copies and pickles of it are diffusers' class again and not
    compiled, like those of other compiled modules.
    """

    ends: Ends

    @property
    def _hooked(self) -> bool:
        """Whether its layers have hooks. Then its ends run uncompiled: torch would not see a hook that came later."""
        layers = (self.norm, self.proj_in, self.proj_out)
        return any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> Any:
        if self._hooked:
            return _enter(self, hidden_states)
        return self.ends.enter(self, hidden_states)

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        sizes = (batch_size, height, width, inner_dim)
        if self._hooked:
            return _leave(self, hidden_states, residual, *sizes)
        return self.ends.leave(self, hidden_states, residual, *sizes)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state.pop("ends", None)
        return state

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__new__, (Transformer2DModel,), self.__getstate__()
