"""What runs: use cases, the HTTP API, the command line, the edge."""
