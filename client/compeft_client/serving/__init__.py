"""Experts into serving engines: GGUF files for llama.cpp, a resolver for vLLM, calls that load them, and checks of what they do."""
