"""The root of the error tree: every error a user can cause is a `StudioError` (`pipelines.errors` shows all)."""


class StudioError(Exception):
    """Something the user can mend. The message names the thing, its value and the remedy."""


class ComposerError(StudioError, ValueError):
    """A composition method's settings, or the mix it was given, do not make sense."""
