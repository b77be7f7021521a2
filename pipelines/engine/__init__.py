"""UNet and text encoder calls in which each row has its own adapters: which form they take, and how they run."""
