"""Uploads: their admission, ingest, group commit, and records."""
