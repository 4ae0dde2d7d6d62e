"""Opens a model: a file is GGUF, a folder is MLX's or holds one GGUF model."""

from pathlib import Path

from quant.errors import ModelFileError, ModelFormatError
from quant.gguf_file import PART, GGUFFile
from quant.mlx_folder import CONFIG, MLXFolder


def open_checkpoint(path: Path) -> GGUFFile | MLXFolder:
    try:
        return _opened(path)
    except OSError as fault:  # the system refuses to look: a name too long, a folder that is not ours to read
        raise ModelFileError(path, f"cannot be opened: {fault.strerror}") from fault


def _opened(path: Path) -> GGUFFile | MLXFolder:
    if not path.is_dir():
        return GGUFFile(path)
    if (path / CONFIG).exists():
        return MLXFolder(path)
    files = sorted(path.glob("*.gguf"))
    parts = {f: PART.fullmatch(f.name) for f in files}
    models = [f for f, part in parts.items() if part is None or part["no"] == "00001"]  # the first opens the rest
    if len(models) == 1:
        return GGUFFile(models[0])
    if not models:
        raise ModelFormatError(path, f"holds neither {CONFIG} nor a GGUF file")
    raise ModelFormatError(path, f"holds {len(models)} GGUF models; name one of {', '.join(f.name for f in models)}")
