"""Grids that compare settings: axes, a labelled sheet, and a page with the record of every cell."""
