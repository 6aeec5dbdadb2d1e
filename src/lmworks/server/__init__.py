"""One engine per model behind HTTP, OpenAI-compatible, with a chat page. Knows no routing between servers.

`serve` needs nothing but the core install to be imported; the modules that hold the application need the
extra `serve` (FastAPI, uvicorn, prometheus-client), which `serve` checks before importing them.
"""
