"""Mixings: which streams a method reads, when they mix, and what becomes of their images and labels. One per file."""
