"""Uploads: admitted, ingested, committed in groups, and recorded."""
