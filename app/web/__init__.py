"""The web layer: Starlette's requests in, answers out."""
