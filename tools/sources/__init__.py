"""Readers of the original data sets, one file a layout."""
