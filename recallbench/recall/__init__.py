"""Recall from real documents: what a language model, wherever it comes from, tells of what it has just read."""
