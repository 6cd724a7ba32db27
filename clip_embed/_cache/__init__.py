"""Vectors by content, in memory and on disk, and whose vectors may stand for whose."""
