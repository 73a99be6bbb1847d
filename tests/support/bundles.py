"""Saved folders whose content is changed on purpose, with checksums that fit."""

import json
from pathlib import Path
from typing import Any

from modeling_asymvlm.utils.durable_files import sha256_of
from modeling_asymvlm.utils.json_files import write_record


def seal_again(manifest: Path, content: dict[str, Any] | None = None, **changes: Any) -> None:
    """Writes a manifest that says something else, of the files as they are now."""
    record = json.loads(manifest.read_text())
    kept = {name: value for name, value in record.items() if name not in ("format", "checksum")}
    own = {"identity": kept["identity"]} | kept if content is None else {"identity": kept["identity"], **content}
    files = {
        file.name: {"size": file.stat().st_size, "sha256": sha256_of(file)}
        for file in manifest.parent.iterdir()
        if file != manifest
    }
    write_record(manifest, {**own, **changes, "files": files}, format=record["format"])
