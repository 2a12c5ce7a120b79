"""What the pack commands say: a few lines for people, or one JSON object for programs, from the same values."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from compeft_client.packing.diff import Alike, Difference
from compeft_client.packing.expert_file import ExpertFile
from compeft_client.packing.inspect_costs import Inspection, Row, riding_rows
from compeft_client.packing.pack import Packed
from compeft_proto.expert_manifest import HEAD, FilePart

UNKNOWN_START = (
    "start unknown: A's random start travels too, coarsely; that is {coarse:,} of the bytes and some quality. "
    "--init (the untrained adapter's directory, or seed:N) saves both"
)
RIDES_ALONG = (
    "{name} rides along: {bytes:,} bytes as stored, {packed:,} packed; if it was not trained, save the adapter without it"
)
HEAD_TRAVELS = "head.safetensors, the classification head, is not compressed further than bf16: {head:,} of the bytes"
NO_QUALITY = "what it is worth on your task is not known here: measure it there, beside the original and the bare base model"
MOST_ROWS = 40
GAP = "\n"


def packed(file: Path, result: Packed, keyid: str | None, output_format: str) -> str:
    """After `pack`."""
    coarse = sum(len(c.payload) for c in result.parts if c.planned.is_coarse)
    head = sum(len(c.payload) for c in result.parts if c.part.file == HEAD)
    riding = riding_rows(result.source, [c.planned for c in result.parts])
    cosine = result.cosine
    how = result.compression
    if output_format == "json":
        return json.dumps(
            {
                "file": str(file),
                "bytes": result.total_bytes,
                "stored_bytes": result.stored_bytes,
                "bf16_bytes": result.bf16_bytes,
                "exact": _is_exact(result),
                "compression": asdict(how),
                "cosine": cosine,
                "products": _products(result),
                "unknown_start_bytes": coarse,
                "head_bytes": head,
                "riding_along": list(map(asdict, riding)),
                "notes": list(result.notes),
                "keyid": keyid,
            }
        )
    return _lines(
        f"{file}: {result.total_bytes:,} bytes, {_fewer(result.stored_bytes, result.total_bytes)} than stored, "
        f"{_fewer(result.bf16_bytes, result.total_bytes)} than bf16",
        _kept(result, cosine),
        UNKNOWN_START.format(coarse=coarse) if coarse else "",
        *_riding(riding),
        HEAD_TRAVELS.format(head=head) if head * 10 > result.total_bytes else "",
        *result.notes,
        f"signed by {keyid}" if keyid else "not signed: with --sign KEY others can verify it",
        "" if _is_exact(result) else NO_QUALITY,
    )


def _is_exact(result: Packed) -> bool:
    return any(c.part.delta for c in result.parts)


def _kept(result: Packed, cosine: float) -> str:
    if _is_exact(result):
        return "kept every bit; unpacking needs the same --init"
    how, found = result.compression, _products(result)
    if found is None:
        return f"kept {how.density:.4g} of the changes, scale {how.factor:.3g} x {how.scale}, cosine with all of the changes {cosine:.2f}"
    return (
        f"kept {found['components']:,} components of {found['modules']:,} products B A, cos^2 with what they were {found['cos2']:.2f}, the "
        f"worst of a tenth of the modules {found['low']:.2f}"
    )


def _products(result: Packed) -> dict[str, float] | None:
    """What was kept of the products; None without products. low: the tenth percentile of the modules' cos^2."""
    encoded = next((c.encoded for c in result.parts if c.encoded), None)
    if encoded is None:
        return None
    each = sorted(m.cos2 for m in encoded.modules if m.norm > 0) or [1.0]
    components = sum(m.components for m in encoded.modules)
    return {"modules": len(encoded.modules), "components": components, "cos2": encoded.cos2, "low": each[len(each) // 10]}


def unpacked(opened: ExpertFile, directory: Path, output_format: str) -> str:
    """After `unpack`."""
    manifest = opened.manifest
    if output_format == "json":
        facts = {"directory": str(directory), "parameters": manifest.size, "base_model": manifest.base_model}
        return json.dumps(facts | _signer(opened))
    base = f", for base model {manifest.base_model}" if manifest.base_model else ""
    return _lines(f"{directory}: {manifest.size:,} parameters in {', '.join(manifest.files)}{base}", _signature(opened))


def unpacked_gguf(opened: ExpertFile, file: Path, modules: int, total_bytes: int, output_format: str) -> str:
    """After `unpack --as gguf`."""
    if output_format == "json":
        facts = {"file": str(file), "modules": modules, "bytes": total_bytes, "base_model": opened.manifest.base_model}
        return json.dumps(facts | _signer(opened))
    return _lines(f"{file}: LoRA of {modules:,} modules as GGUF, {total_bytes:,} bytes", _signature(opened))


def verified(opened: ExpertFile, keyid: str, output_format: str) -> str:
    """After `verify`."""
    if output_format == "json":
        return json.dumps({"file": str(opened.path), "keyid": keyid, "bytes": opened.total_bytes, "verified": True})
    return f"{opened.path}: signed by {keyid}, all {opened.total_bytes:,} bytes are what was signed"


def file(opened: ExpertFile, output_format: str) -> str:
    """After `inspect FILE`."""
    manifest = opened.manifest
    if output_format == "json":
        facts = {
            "file": str(opened.path),
            "bytes": opened.total_bytes,
            "manifest_bytes": opened.manifest_bytes,
            "tool": manifest.tool,
            "base_model": manifest.base_model,
            "parameters": manifest.size,
            "parts": list(map(_part, manifest.parts)),
        }
        return json.dumps(facts | _signer(opened))
    rows = [_part_row(part) for part in manifest.parts]
    return _lines(
        f"{opened.path}: {opened.total_bytes:,} bytes, {opened.manifest_bytes:,} of them manifest; made by {manifest.tool}",
        f"base model {manifest.base_model or 'not named'}; {manifest.size:,} parameters",
        _signature(opened),
        GAP,
        *_table(("part of", "tensors", "parameters", "stored", "packed", "start", "coding"), rows),
    )


def directory(found: Inspection, start_given: bool, output_format: str) -> str:
    """After `inspect DIRECTORY`."""
    if output_format == "json":
        return json.dumps(
            {
                "directory": str(found.source.path),
                "base_model": found.source.base_model,
                "parameters": found.parameters,
                "stored_bytes": found.stored_bytes,
                "rows": list(map(asdict, found.rows)),
                "riding_along": list(map(asdict, found.riding)),
                "dead": list(found.dead),
                "notes": list(found.notes),
                "packed_bytes": {f"{density:g}": size for density, size in found.sizes},
                "product_bytes": {f"{times:g}": {"bytes": size, "cos2": cos2} for times, size, cos2 in found.products},
            }
        )
    rows = [(row.name, f"{row.tensors}", f"{row.parameters:,}", row.dtype, f"{row.bytes:,}", row.treatment) for row in found.rows]
    more = [f"... and {len(rows) - MOST_ROWS} more (all with --format json)"] if len(rows) > MOST_ROWS else []
    coarse = any(row.treatment == "coarse" for row in found.rows)
    base = f", for base model {found.source.base_model}" if found.source.base_model else ""
    return _lines(
        f"{found.source.path}: {found.parameters:,} parameters, {found.stored_bytes:,} bytes{base}",
        GAP,
        *_table(("module (numbers as *)", "tensors", "parameters", "type", "bytes", "would be"), rows[:MOST_ROWS]),
        *more,
        GAP,
        *_riding(found.riding),
        *found.notes,
        "start unknown, so A travels coarsely; see what --init saves" if coarse and not start_given else "",
        "packed as products, the whole file:" if found.products else "",
        *(
            _table(("--times", "bytes", "than stored", "cos^2"), [_product_row(found, *p) for p in found.products])
            if found.products
            else ()
        ),
        "packed with --density, the whole file:",
        *_table(("density", "bytes", "than stored"), [_size_row(found, *size) for size in found.sizes]),
    )


def difference(found: Difference, output_format: str) -> str:
    """After `diff`."""
    if output_format == "json":
        modules = {name: _measures(module) for name, module in found.modules.items()}
        return json.dumps({"total": _measures(found.total), "modules": modules, "left_out": dict(found.left_out)})
    head = ("module", "cosine", "norm B/A", "overlap", "same sign", "conflicts")
    rows = [_alike_row(name, module) for name, module in found.modules.items()]
    more = [f"... and {len(rows) - MOST_ROWS} more (all with --format json)"] if len(rows) > MOST_ROWS else []
    reasons = sorted(set(found.left_out.values()))
    return _lines(
        *_table(head, [_alike_row("all", found.total), *rows[:MOST_ROWS]]),
        *more,
        "cosine and norms of LoRA are those of the products B A; overlap: entries both changed, of those either did; same sign and "
        "conflicts: of the entries both changed",
        *(f"{list(found.left_out.values()).count(reason)} tensors not compared: {reason}" for reason in reasons),
    )


def _lines(*lines: str) -> str:
    """The lines that say something, and the gaps."""
    return "\n".join(line.strip("\n") for line in lines if line)


def _fewer(before: int, after: int) -> str:
    return f"{before / after:.1f} times fewer"


def _riding(rows: Iterable[Row]) -> list[str]:
    return [RIDES_ALONG.format(name=row.name, bytes=row.bytes, packed=row.packed_bytes) for row in rows]


def _signer(opened: ExpertFile) -> dict[str, object]:
    return {"keyids": list(opened.keyids), "verified": opened.verified}


def _signature(opened: ExpertFile) -> str:
    if not opened.keyids:
        return "not signed"
    names = ", ".join(ascii(keyid)[1:-1] for keyid in opened.keyids)
    return f"signed by {names}" if opened.verified else f"says it is signed by {names}: not checked, give --key"


def _start(part: FilePart) -> str:
    if part.seed is not None:
        return f"seed {part.seed}"
    return f"state {part.initial_digest.hex()[:16]}" if part.initial_digest else "zero"


def _coding(part: FilePart) -> str:
    if part.slices is not None:
        return f"products of {sum(m.slices for m in part.modules):,} modules"
    if part.steps:
        return f"integers, {8 * part.payload_bytes / max(1, part.layout.size):.1f} bits each"
    if part.delta:
        return "exact delta"
    if part.columns:
        return f"positions, {16 * part.payload_bytes / max(1, part.layout.size):.1f} bits each"
    if part.coding is None:
        return "exact, deflated" if part.deflated_bytes else "exact"
    how, scales = part.coding.compression, list(part.coding.scales)
    if not part.layout.ternary_size:
        return "bf16"
    scale = f"{scales[0]:.3g}" if len(scales) == 1 else f"{min(scales):.3g} to {max(scales):.3g}"
    return f"{part.coding.codec}, density {how.density:.3g}, {how.factor:.3g} x {how.scale_rule:.20} = {scale}"


def _part(part: FilePart) -> dict[str, object]:
    coding = part.coding
    return {
        "file": part.file,
        "tensors": len(part.layout.tensors),
        "parameters": part.layout.size,
        "stored_bytes": part.stored_bytes,
        "payload_bytes": part.payload_bytes,
        "start": _start(part),
        "coding": _coding(part),
        "kept": coding.kept if coding else None,
        "scales": list(coding.scales) if coding else [],
    }


def _part_row(part: FilePart) -> tuple[str, ...]:
    counts = (len(part.layout.tensors), part.layout.size, part.stored_bytes, part.payload_bytes)
    return part.file, *(f"{n:,}" for n in counts), _start(part), _coding(part)


def _product_row(found: Inspection, times: float, size: int, cos2: float) -> tuple[str, ...]:
    return f"{times:g}", f"{size:,}", _fewer(found.stored_bytes, size), f"{cos2:.2f}"


def _size_row(found: Inspection, density: float, size: int) -> tuple[str, str, str]:
    return f"{density:.0%}", f"{size:,}", _fewer(found.stored_bytes, size)


def _measures(a: Alike) -> dict[str, float]:
    names = ("cosine", "norm_ratio", "jaccard", "sign_agreement", "conflicts")
    return {name: getattr(a, name) for name in names}


def _alike_row(name: str, a: Alike) -> tuple[str, ...]:
    entries = (f"{a.jaccard:.3f}", f"{a.sign_agreement:.3f}", f"{a.conflicts:,}") if a.either else ("-", "-", "-")
    return name, f"{a.cosine:.3f}", f"{a.norm_ratio:.3f}", *entries


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns by spaces: the first to the left, numbers to the right, words to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    right = [all(row[i][:1].isdigit() or row[i][:1] == "-" for row in rows) for i in range(len(head))]
    lines = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)] for row in (head, *rows)]
    return ["  ".join(cells).rstrip() for cells in lines]
