"""What a person at the terminal sees, how Ctrl+C is met, and what exit codes mean."""
