"""Prompts: their syntax, the adapter tags in them, and their encoding."""
