"""From a socket to an answer: the server, its bounds, the front, and forwarding to the owner."""
