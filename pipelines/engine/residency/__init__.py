"""Where adapters are: on disk, in the host's memory, on the device, and packed for the lanes of a call."""
