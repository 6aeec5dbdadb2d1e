"""One spelling for each text, and rules that drop documents and lines, each with its publication. Knows no files."""
