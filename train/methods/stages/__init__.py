"""Stages: what a run inherits from an earlier one, what it trains and how its epochs end. One per file."""
