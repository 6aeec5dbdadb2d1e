"""An engine in a thread or a process of its own, and the streams in front of it. Knows no HTTP."""
