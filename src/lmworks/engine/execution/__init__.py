"""A scheduled step, computed: as a native program, module by module, or as a graph on a GPU. Knows no text."""
