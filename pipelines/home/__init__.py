"""The user's folders, the names in them, and the settings."""

from pipelines.home.home import Home
from pipelines.home.names import Entry

__all__ = ["Entry", "Home"]
