"""The data set on disk: format, writer, index, reader, class counts. Knows neither DALI nor torch."""
