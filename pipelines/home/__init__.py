"""The user's folders, the names in them, and the settings."""
