"""The relay to JetStream, and the messages to the edges."""
