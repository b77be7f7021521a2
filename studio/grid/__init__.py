"""Settings compared: axes, a labelled sheet, and a page with every cell's record."""
