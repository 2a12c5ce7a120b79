"""Entry points of vLLM's plug-in, which vLLM loads in all its processes. Nothing else is imported until a request asks for an expert.

In a worker, numba's llvmlite must not be loaded when vLLM 0.32 looks through all modules for kernels ("'_lib_fn_wrapper' object has no
attribute 'get'"); requests are resolved in the API server's process only.
"""

from typing import Any

NAME = "compeft"


def register() -> None:
    """Entry point of `vllm.general_plugins`: registers the resolver. Cheap, and the same when it is called again."""
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    class CompeftResolver(LoRAResolver):  # type: ignore[misc]  # vLLM is not installed where types are checked
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            """The adapter that a name stands for; None if it is not one of ours, or refused."""
            from compeft_client.serving.vllm_plugin import resolve_lora

            return await resolve_lora(base_model_name, lora_name)

    LoRAResolverRegistry.register_resolver(NAME, CompeftResolver())


def endpoint_plugin() -> Any:
    """Entry point of `vllm.endpoint_plugins`, which only the API server calls."""
    from compeft_client.serving.vllm_plugin import EndpointPlugin

    return EndpointPlugin()
