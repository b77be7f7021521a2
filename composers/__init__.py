"""Composition methods for LoRA mixes as pure schedules; needs nothing but the standard library."""

from composers.blora import BLora
from composers.cmlora import CMLoRA
from composers.composite import Composite
from composers.errors import ComposerError, StudioError
from composers.merge import Merge
from composers.plan import (
    Composer,
    Guidance,
    Knob,
    Lane,
    Mix,
    Plan,
    Prompt,
    Schedule,
    Step,
    Use,
    guided,
    knob,
)
from composers.registry import build, methods, parse, settings_of, spell
from composers.switch import Switch

__all__ = [
    "BLora",
    "CMLoRA",
    "Composer",
    "ComposerError",
    "Composite",
    "Guidance",
    "Knob",
    "Lane",
    "Merge",
    "Mix",
    "Plan",
    "Prompt",
    "Schedule",
    "Step",
    "StudioError",
    "Switch",
    "Use",
    "build",
    "guided",
    "knob",
    "methods",
    "parse",
    "settings_of",
    "spell",
]
