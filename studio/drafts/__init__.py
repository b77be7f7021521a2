"""What was asked for, before it is a request: drafts, and the adapters that they name."""
