"""Objectives: the heads of a network, what one labelled term costs, and how its output is read. One per file."""
