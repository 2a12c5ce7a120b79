"""Everything that needs a loaded torch/PEFT model: adapter, fine-tuning, pool, device codec."""
