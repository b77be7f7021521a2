"""The command line and the web app: they fill Requests, show what comes back, and hold no mathematics."""
