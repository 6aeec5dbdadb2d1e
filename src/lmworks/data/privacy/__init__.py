"""Personal data and secrets: found, counted, replaced; documents erased on request from everything made of them."""
