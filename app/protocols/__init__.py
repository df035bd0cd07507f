"""Protocols: bytes and headers in, events and decisions out. Pure: no waiting, no clock, no framework."""
