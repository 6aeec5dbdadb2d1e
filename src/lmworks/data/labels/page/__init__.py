"""The files of the labelling page: it asks for nothing beyond the server that serves it."""
