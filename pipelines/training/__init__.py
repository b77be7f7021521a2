"""Training small adapters on a loaded model: the loop, its settings and its state, for all types of adapters."""
