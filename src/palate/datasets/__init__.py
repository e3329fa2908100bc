"""Preference data on disk: one format per file; the file name is the registry."""
