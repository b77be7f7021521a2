"""Which method composes better: the same mixes by every method, drawn in shared passes and scored."""
