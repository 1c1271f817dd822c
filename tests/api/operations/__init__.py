"""The operations of the API description: good requests for each, and bad ones for all."""
