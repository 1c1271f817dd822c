"""The API description: OpenAPI for machines, a page for people."""
