"""The command line and the web app. They fill Requests and show what comes back; they hold no mathematics."""
