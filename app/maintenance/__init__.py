"""Maintenance: what keeps files and records in agreement, with nobody waiting for it."""
