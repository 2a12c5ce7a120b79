"""SmolLM2-135M-Instruct with LoRA on all linear layers: the base, tasks answered by generated words, experts and their scores."""
