"""Measures what one pass over many mixes costs on this machine, against every rival."""
