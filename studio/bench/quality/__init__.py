"""Measures how well methods compose: the same mixes by every method, drawn in shared passes and scored."""
