"""Parts of pages: those that several pages share, and those that stand for themselves."""
