"""What one layer computes: the forms of its product with its lanes' adapters."""
