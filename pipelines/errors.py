"""The whole error tree. Every error that a user can cause is a `StudioError`. Its message names the thing, its value
and the remedy; front ends show that message and nothing else.

StudioError                      (composers.errors)
├── ComposerError                a method's settings, or a mix that it cannot take (composers.errors)
├── RequestError                 a request that makes no sense: sizes, steps, an unknown adapter, …
├── PromptError                  a prompt that cannot be read: a malformed <lora:…> tag, too many open brackets, …
├── AdapterError                 an adapter file
│   ├── AdapterFileError         it cannot be read: missing, truncated, a pickle, not safetensors
│   ├── AdapterFormatError       its keys or types are not understood, or it is not supported yet
│   ├── AdapterMismatchError     it is sound, but made for another model
│   └── BaseNeeded               its change depends on the base model's weights, which are not at hand
├── ModelError                   a checkpoint that cannot be found, read or run
├── SetupError                   folders, configuration, device, a missing package
│   └── NoAnswer                 a folder that does not answer (pipelines.home.answers)
└── RenderError                  the run itself: a picture that is not finite, memory exhausted at one row
"""

from composers.errors import ComposerError, StudioError


class RequestError(StudioError, ValueError):
    """A request that makes no sense."""


class PromptError(StudioError, ValueError):
    """A prompt that cannot be read."""


class AdapterError(StudioError):
    """An adapter file that cannot be used."""


class AdapterFileError(AdapterError):
    """The file cannot be read at all."""


class AdapterFormatError(AdapterError):
    """The file's keys, shapes or type are not understood, or not supported yet."""


class AdapterMismatchError(AdapterError):
    """The file is sound, but made for another model."""


class BaseNeeded(AdapterError):
    """What the file changes depends on the weights of the base model, and these were not read."""


class ModelError(StudioError):
    """A checkpoint that cannot be found, read or run."""


class SetupError(StudioError):
    """Folders, configuration, the device or a missing package stand in the way."""


class RenderError(StudioError):
    """The run itself failed."""


__all__ = [
    "AdapterError",
    "AdapterFileError",
    "AdapterFormatError",
    "AdapterMismatchError",
    "BaseNeeded",
    "ComposerError",
    "ModelError",
    "PromptError",
    "RenderError",
    "RequestError",
    "SetupError",
    "StudioError",
]
