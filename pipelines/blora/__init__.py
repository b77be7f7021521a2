"""Tools for B-LoRA: split a LoRA into content and style, probe a model's blocks, train on one picture.

Method: Frenkel et al. 2024, "Implicit Style-Content Separation using B-LoRA" (arXiv 2403.14572).
"""
