"""Stages: what a run inherits from an earlier one and what it trains. One per file."""
