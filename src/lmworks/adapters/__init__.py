"""Small trainable parts put into a frozen model: injected, merged, saved in PEFT's layout. Knows no model class."""

from lmworks.adapters.inject import inject_lora, merge_and_unload
from lmworks.adapters.lora import LoraConfig, LoraLinear
from lmworks.adapters.peft_folder import load_adapter, read_adapter, save_adapter

__all__ = [
    "LoraConfig", "LoraLinear", "inject_lora", "load_adapter", "merge_and_unload", "read_adapter", "save_adapter",
]  # fmt: skip
