"""From a socket to an answer: the server, its bounds, the front, and passing on to the owner."""
