"""Backbones, heads and their initialisation."""
