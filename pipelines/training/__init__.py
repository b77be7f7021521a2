"""Training small adapters on a resident model: the loop, its settings and its state, whatever the adapter's type."""
