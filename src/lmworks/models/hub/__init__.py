"""Models as the ecosystem stores them: Hugging Face folders in and out, GGUF in."""

from lmworks.models.hub.gguf import read_gguf
from lmworks.models.hub.pretrained import load_pretrained, read_config, save_pretrained

__all__ = ["load_pretrained", "read_config", "read_gguf", "save_pretrained"]
