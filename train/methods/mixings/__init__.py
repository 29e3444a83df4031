"""Mixings: which streams a method reads, when they mix, and how images and labels are combined. One per file."""
