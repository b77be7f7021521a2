"""The web studio: Gradio's pages, a typed API, and A1111's calls, all behind one guard."""
