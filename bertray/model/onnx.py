"""The BERT family on CPUs by ONNX Runtime (optional), in float32 or with 8-bit matrix products.

# B = rows in the micro-batch, C = labels
"""

import logging
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from bertray.errors import ModelError
from bertray.model.bundle import Bundle, load_model
from bertray.model.cache import cache_folder, filling
from bertray.model.onnx_graph import GRAPH_VERSION, Precision, write_graph
from bertray.model.packed import (
    TOLERANCE,
    agree,
    check_rows,
    pack,
    padding_index,
    plain_logits,
    position_ids,
)
from bertray.model.pretrained import read_config
from bertray.text.ragged import Encoded, pad, take

logger = logging.getLogger(__name__)

FILE = "model.onnx"


class OnnxBackend:
    """A session over the model's graph, which is made once a machine and kept in the cache.

    Args:
        bundle: the model.
        precision: of the matrix products; all else is float32.
        pad_token_id: fills the shorter rows of a batch; masked, so it changes nothing.
        num_threads: cores to compute on.

    Raises:
        ModelError: ONNX Runtime gives other numbers for this model.
    """

    pads = True
    is_even = False
    is_first_only = True
    device = torch.device("cpu")

    def __init__(
        self, bundle: Bundle, *, precision: Precision, pad_token_id: int, num_threads: int
    ) -> None:
        self._num_threads = num_threads
        self._pad_token_id = pad_token_id
        config = read_config(bundle.folder, source=bundle.source, key="model.path")
        self._padding_idx = padding_index(config)
        name = f"{bundle.digest}-{precision}-{GRAPH_VERSION}"
        target: Path = cache_folder() / "onnx" / name
        if not target.is_dir():
            self._fill_cache(bundle, target, precision=precision)
        self._open(target)

    def gather(self, encoded: Encoded, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Some rows as the graph's inputs.

        Args:
            encoded: the tokens of all rows.
            rows: indices of the B rows wanted.
        """
        batch = take(encoded, rows)
        segments = batch.token_type_ids
        if segments is None:
            segments = np.zeros(len(batch.input_ids), np.int8)
        flat = {
            "input_ids": (batch.input_ids, self._pad_token_id),
            "position_ids": (position_ids(batch, self._padding_idx), 0),
            "token_type_ids": (segments, 0),
        }
        feed = {"lengths": batch.lengths.astype(np.int32)}
        for name, (values, filler) in flat.items():
            if name in self._inputs:
                rectangle, _ = pad(values, batch.offsets, np.arange(len(batch)), value=filler)
                feed[name] = rectangle.astype(np.int32)
        return feed

    def __call__(self, batch: dict[str, np.ndarray]) -> Tensor:
        """Logits of a batch, float32 of shape (B, C)."""
        return torch.from_numpy(self._session.run(None, batch)[0])

    def _open(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._num_threads
        options.log_severity_level = 4  # what fails is raised, and said once, by us
        options.enable_mem_pattern = False  # helps only where all batches have one shape
        path = str(folder / FILE)
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {value.name for value in self._session.get_inputs()}

    def _fill_cache(self, bundle: Bundle, target: Path, *, precision: Precision) -> None:
        """Write the graph, and see that its numbers are the model's; of 8 bits nobody can say."""
        model = load_model(bundle)
        packed = pack(model)
        refusal = f"{bundle.source}: ONNX Runtime gives other numbers; set model.backend=torch"
        if packed is None:
            raise ModelError(refusal)
        logger.info("writing an ONNX graph model=%s target=%s", bundle.source, target)
        with filling(target) as folder:
            write_graph(packed, folder / FILE, precision=precision)
            self._open(folder)
            encoded = check_rows(model)
            every = np.arange(len(encoded))
            longest = encoded.lengths.argmax(axis=0, keepdims=True)  # alone, so without padding
            for rows in (every, longest) if precision == "float32" else ():
                wanted = plain_logits(model, encoded, rows)
                if not agree(self(self.gather(encoded, rows)), wanted, tolerance=TOLERANCE):
                    raise ModelError(refusal)
