"""The command-line tools, one thin file each."""
