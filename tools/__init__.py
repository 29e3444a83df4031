"""The commands that people run, one thin file each."""
