"""PEFT models in rounds: their arrays out, arrays in, and what they are trained with. torch and PEFT are loaded on the first call.

    from compeft_client.flower.peft import arrays_of, load, origin_of

    arrays = arrays_of(model)                              # an ArrayRecord, for `strategy.start` and for a client's reply
    load(model, message.content["arrays"])                 # all of them, or an error that names the first that does not fit
    CompressionMod(lambda context: origin_of(*made(context)))    # model and tokenizer: refused before training if they differ

Names are PEFT's own without the adapter's (`get_peft_model_state_dict`), so any adapter type of PEFT, DoRA's magnitudes, modules_to_save,
trained token rows and fused experts go the same way. With several adapters each name begins with its adapter's: "berlin/...lora_A.weight".
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord

from compeft_client.checkpoints.base_model_digest import weights_digest
from compeft_client.checkpoints.peft_fields import check_fields
from compeft_client.flower.arrays import array_record
from compeft_core.errors import InputError, LayoutMismatchError
from compeft_proto.peft_configuration import BASE_NAME, base_tensors, configuration_json, plain
from compeft_proto.round_task import Origin, canonical_json, numpy_of
from compeft_proto.weights_digest import digest_of

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

DEFAULT = ("default",)
PROBE = "One probe:  Größe, 42.5 % of naïve «words», 你好!\n\tif x != y: return"
"""A text whose token ids show splitting and normalising, which a vocabulary alone does not."""


def arrays_of(model: "PeftModel", adapters: Sequence[str] = DEFAULT) -> ArrayRecord:
    """The adapters' arrays by name: float32 and float16 as they are, bfloat16 as float32, which is exact.

    Errors: InputError for an adapter that the model lacks, and for one whose average over sites has no meaning.
    """
    return array_record(_tensors(model, adapters))


def load(model: "PeftModel", arrays: ArrayRecord | Mapping[str, Any], adapters: Sequence[str] = DEFAULT) -> None:
    """Put arrays, as `arrays_of` names them, into the adapters: all of them or, after an error, none.

    Errors: LayoutMismatchError for the first array that is missing, unknown, or of another shape; InputError as in `arrays_of`.
    """
    import torch
    from peft import set_peft_model_state_dict

    held = _tensors(model, adapters)
    for name in sorted(held.keys() ^ arrays.keys()):
        where = "this model has and the expert lacks" if name in held else "the expert has and this model lacks"
        raise LayoutMismatchError(f"array {name!r}: {where} it; build the adapter with the expert's own configuration")
    for name, tensor in held.items():
        if tuple(arrays[name].shape) != tuple(tensor.shape):
            raise LayoutMismatchError(
                f"array {name!r} is {tuple(arrays[name].shape)} in the expert and {tuple(tensor.shape)} in this model: "
                f"{_advice(name)}"
            )
    for adapter in adapters:
        prefix = _prefix(adapter, adapters)
        own = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        values = {n: torch.from_numpy(numpy_of(a).copy()) for n, a in own.items()}
        set_peft_model_state_dict(model, values, adapter_name=adapter)


def origin_of(model: "PeftModel", tokenizer: object = None, adapters: Sequence[str] = DEFAULT) -> Origin:
    """What a model is trained with: the base model's weights digest, the adapter's configuration, and the digests of the tokenizer
    and of its chat template.

    The weights digest is that of the files that the base model was loaded from, where they are on this machine: then a site with the base
    in 4 bits or bfloat16 and one with it in float32 agree. Without files it is that of the tensors in memory. A folder's path is left out,
    since each site has its own.

    Errors: InputError as in `arrays_of`.
    """
    configs = _configs(model, adapters)
    said = str(configs[0].to_dict().get(BASE_NAME) or "")
    files = _files_of(said, getattr(configs[0], "revision", None))
    name = "" if not said or Path(said).exists() else said
    adapter = configuration_json(configs[0], name)
    if len(configs) > 1:
        each = {a: json.loads(configuration_json(c, name)) for a, c in zip(adapters, configs, strict=True)}
        adapter = canonical_json({"adapters": each})
    digest = weights_digest(files) if files else digest_of(base_tensors(model, model.state_dict()))
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return Origin(
        digest,
        adapter,
        name,
        str(getattr(configs[0], "revision", None) or ""),
        tokenizer_digest(tokenizer) if tokenizer is not None else b"",
        hashlib.sha256(template.encode()).digest() if template else b"",
    )


def tokenizer_digest(tokenizer: Any) -> bytes:
    """SHA-256 (32 bytes) of a tokenizer's vocabulary with its ids, and of the ids that it gives a text with many kinds of characters."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return hashlib.sha256(canonical_json({"vocabulary": vocabulary, "probe": list(ids)})).digest()


def _tensors(model: "PeftModel", adapters: Sequence[str]) -> dict[str, "torch.Tensor"]:
    """The adapters' tensors by the names under which they travel."""
    from peft import get_peft_model_state_dict

    _configs(model, adapters)
    found: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        own = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
        found |= {_prefix(adapter, adapters) + name: tensor for name, tensor in own.items()}
    _check_complete(model, found, adapters)
    return found


def _check_complete(model: "PeftModel", found: Mapping[str, "torch.Tensor"], adapters: Sequence[str]) -> None:
    """Refuse a parameter that trains and would not travel: the sites' models would drift apart. Errors: InputError, naming it."""
    sent = {tensor.data_ptr() for tensor in found.values()}
    others = [f".{name}" for name in model.peft_config if name not in adapters]
    for name, parameter in model.named_parameters():
        of_another = any(f"{other}." in name or name.endswith(other) for other in others)
        if parameter.requires_grad and not of_another and parameter.data_ptr() not in sent:
            raise InputError(
                f"parameter {name!r} trains and PEFT does not save it with the adapter, so it cannot be averaged: freeze it, or name its "
                "layer in modules_to_save"
            )


def _configs(model: "PeftModel", adapters: Sequence[str]) -> list[Any]:
    """The adapters' configurations, each of which can be averaged. Errors: InputError."""
    configs = []
    for adapter in adapters:
        if adapter not in model.peft_config:
            raise InputError(f"model has no adapter {adapter!r}, it has {', '.join(sorted(model.peft_config))}")
        config = model.peft_config[adapter]
        fields = {name: value for name, value in config.to_dict().items() if name not in ("auto_mapping", "peft_version")}
        check_fields({name: plain(value) for name, value in fields.items()}, "rounds", f"adapter {adapter!r}")
        configs.append(config)
    return configs


def _prefix(adapter: str, adapters: Sequence[str]) -> str:
    return f"{adapter}/" if len(adapters) > 1 else ""


def _advice(name: str) -> str:
    if "lora_" in name:
        return "the rank differs: build the adapter with the expert's r and rank_pattern"
    return "build the adapter with the expert's own configuration"


def _files_of(said: str, revision: object) -> Path | None:
    """The folder with the base model's weights as safetensors on this machine; None if it has no such files."""
    folder = Path(said)
    if said and not folder.exists():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(said, revision=str(revision) if revision else None, local_files_only=True))
        except LocalEntryNotFoundError:
            return None
    return folder if said and any(folder.glob("model*.safetensors*")) else None
