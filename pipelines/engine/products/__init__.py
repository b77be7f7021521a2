"""What one layer computes: its product with its lanes' adapters, in several forms and several ways."""
