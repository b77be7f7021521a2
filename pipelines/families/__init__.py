"""What is known of a family of models: its blocks, its text encoders, its conditions."""
