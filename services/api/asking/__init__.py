"""What comes in: a request, who sends it, what it holds."""
