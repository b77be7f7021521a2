"""Where adapters are: on the disk, in the host's memory, on the device, packed for the lanes at work."""
