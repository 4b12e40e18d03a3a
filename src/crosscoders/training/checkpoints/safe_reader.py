"""Reading the files of Distributed Checkpoint without letting a file name anything to call."""

import io
import pickle
import re
from pathlib import Path
from typing import Any, final

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from crosscoders.errors import CheckpointError

METADATA = ".metadata"  # the file that says where the parts of each tensor lie
_UNPICKLED = re.compile(  # what the metadata of a checkpoint of tensors is made of
    r"torch\.distributed\.checkpoint\.metadata\.(Metadata|MetadataIndex|TensorStorageMetadata"
    r"|ChunkStorageMetadata|TensorProperties|StorageMeta|_MEM_FORMAT_ENCODING)"
    r"|torch\.distributed\.checkpoint\.filesystem\._StorageInfo|torch\.serialization\._get_layout"
    r"|torch\.(Size|u?int\d+|float\d+\w*|bfloat16|bool)|pathlib\.(Posix|Windows)Path"
)


@final
class SafeReader(FileSystemReader):
    """A reader of checkpoints that unpickles nothing but what describes tensors.

    PyTorch pickles the metadata of a checkpoint, and a pickle may call anything; the tensors themselves it
    reads without pickle.

    Args:
        path: Folder of the checkpoint.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Where the parts of each tensor lie.

        Raises:
            CheckpointError: The file is not what PyTorch writes.
        """
        path = Path(self.path) / METADATA
        try:
            metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError) as err:
            raise CheckpointError(f"{path}: not the metadata of a checkpoint ({err}).") from err
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{path}: expected the metadata of a checkpoint, got {type(metadata)}.")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if not _UNPICKLED.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint holds")
        return super().find_class(module, name)
