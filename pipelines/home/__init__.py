"""The user's folders, the names of the files in them, and the settings."""

from pipelines.home.home import Home
from pipelines.home.names import Entry

__all__ = ["Entry", "Home"]
