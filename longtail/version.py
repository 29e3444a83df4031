"""The version of this project, defined only here."""

VERSION = "0.2.0"
