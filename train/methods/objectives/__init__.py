"""Objectives: a network's heads, the loss of one labelled term, and the reading of the output. One per file."""
