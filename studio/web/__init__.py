"""The web studio: gradio's pages, a typed API, and A1111's calls, behind one guard."""
