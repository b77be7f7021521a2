"""What was asked for, before it becomes a request: drafts, and the adapters that they name."""
