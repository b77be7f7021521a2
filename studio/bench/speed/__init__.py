"""What one pass over many mixes costs, against every rival, on this machine."""
