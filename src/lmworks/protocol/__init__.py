"""The wire: OpenAI-shaped schemas, server-sent events and error bodies. Knows no engine and no web framework."""
