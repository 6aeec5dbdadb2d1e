"""From sources to batches: fetch, extract, clean, deduplicate, split, tokenize, pack. Knows no model and no trainer."""
