"""Starlette's side of the service: requests in, answers out."""
