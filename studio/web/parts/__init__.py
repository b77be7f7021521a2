"""Parts of pages: what several pages draw, or one draws by itself."""
