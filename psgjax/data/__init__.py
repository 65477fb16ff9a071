"""Images in: sources, and the data set that they make."""
