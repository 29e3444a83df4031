"""The data set on disk: format, writer, index, reader, class counts. Independent of DALI and torch."""
