"""Adapter files (LoRA and the like): read exactly, inspected without loading, written."""

from pipelines.adapters.adapter import Adapter, AdapterMetadata, LoadReport, model_layers
from pipelines.adapters.container import sha256
from pipelines.adapters.inspection import Inspection, inspect_file
from pipelines.adapters.reading import read_adapter
from pipelines.adapters.terms import Hadamard, LayerFactors, LowRank, ModelLayers, Target
from pipelines.adapters.writing import write_lora

__all__ = [
    "Adapter",
    "AdapterMetadata",
    "Hadamard",
    "Inspection",
    "LayerFactors",
    "LoadReport",
    "LowRank",
    "ModelLayers",
    "Target",
    "inspect_file",
    "model_layers",
    "read_adapter",
    "sha256",
    "write_lora",
]
