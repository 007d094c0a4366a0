"""Model folders on disk: read without trusting them, written whole or not at all.

Everything here works on bytes, headers and JSON; nothing imports torch or transformers. A source is opened for reading
only, and weights are read only by functions that say so. An error in a folder raises a `CheckpointError` that names the
file; an error in an argument raises a `UsageError`.
"""

from surgery.checkpoint.disk import format_size, free_bytes, fsync_file, fsync_folder, fsync_tree, require_space
from surgery.checkpoint.folder import CONFIG_NAME, INDEX_NAME, SINGLE_NAME, Checkpoint, open_checkpoint
from surgery.checkpoint.hashes import BackgroundHasher, same_tensor_bytes, sha256_file, sha256_json, tensor_bytes
from surgery.checkpoint.headers import DTYPE_BITS, TORCH_DTYPES, TensorInfo, read_header, tensor_bits
from surgery.checkpoint.names import quote, safe_relative
from surgery.checkpoint.output import check_output
from surgery.checkpoint.placement import place_file
from surgery.checkpoint.source import Source, absolute_path, resolve
from surgery.checkpoint.staged_folder import StagedFolder, repair_output
from surgery.checkpoint.strict_json import dump_json, load_config, load_json
from surgery.checkpoint.writers import NewTensor, replace_file, write_index, write_json, write_safetensors

__all__ = [
    "CONFIG_NAME",
    "DTYPE_BITS",
    "INDEX_NAME",
    "SINGLE_NAME",
    "TORCH_DTYPES",
    "BackgroundHasher",
    "Checkpoint",
    "NewTensor",
    "Source",
    "StagedFolder",
    "TensorInfo",
    "absolute_path",
    "check_output",
    "dump_json",
    "format_size",
    "free_bytes",
    "fsync_file",
    "fsync_folder",
    "fsync_tree",
    "load_config",
    "load_json",
    "open_checkpoint",
    "place_file",
    "quote",
    "read_header",
    "repair_output",
    "replace_file",
    "require_space",
    "resolve",
    "safe_relative",
    "same_tensor_bytes",
    "sha256_file",
    "sha256_json",
    "tensor_bits",
    "tensor_bytes",
    "write_index",
    "write_json",
    "write_safetensors",
]
