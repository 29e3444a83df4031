"""The version of this project; the one place that has it."""

VERSION = "0.2.0"
