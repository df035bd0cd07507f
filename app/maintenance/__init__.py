"""Maintenance: background work that keeps files and records in agreement."""
