"""The one place where ``shared`` touches torch: texts to features with a frozen encoder.

Importing this module is light; torch and transformers arrive with the first encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared.errors import ModelError
from shared.extras import require
from shared.models.encoder import BaseModel
from shared.types import FloatMatrix


class TextEncoder:
    """A frozen sentence encoder: mean over the tokens of its last layer, length 1.

    The same list of texts gives the same bytes every time on one machine. A text's features
    differ in the last bits with the texts it shares a batch with, so features are cached
    and compared per list, never per text.
    """

    def __init__(self, base: BaseModel, *, threads: int = 1) -> None:
        """Load the encoder from its folder; the network is not asked and no code of it is run.

        Args:
            base: Where the files are.
            threads: Arithmetic threads of torch, for the whole process.

        Raises:
            DependencyMissing: torch or transformers is not installed.
            ModelError: the folder's files are not an encoder that transformers can read.
        """
        self._torch: Any = require("torch", extra="train")
        transformers: Any = require("transformers", extra="train")
        self._torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base.folder, **local)
            self._model: Any = transformers.AutoModel.from_pretrained(
                base.folder, use_safetensors=True, dtype=self._torch.float32, **local
            ).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as err:
            raise ModelError(f"{base.folder} is not an encoder that can be used: {err}") from err
        self.features = int(self._model.config.hidden_size)
        """F, the length of a text's features."""

    def encode(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int = 128,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> FloatMatrix:
        """Return (n, F) features: mean-pooled over the tokens, each row of L2 length 1.

        Args:
            texts: n texts; of a longer one the first ``max_tokens`` tokens count.
            max_tokens: Including the encoder's own first and last token.
            batch_size: Texts per pass, of similar length so that little is padded.
            progress: Told after each batch how many texts are done.
        """
        torch = self._torch
        features = np.zeros((len(texts), self.features), np.float32)
        if not texts:
            return features
        tokens = self._tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda index: (len(tokens[index]), index))
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = self._tokenizer.pad(
                    {"input_ids": [tokens[row] for row in rows]}, return_tensors="pt"
                )
                states = self._model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
                means = (states * mask).sum(dim=1) / mask.sum(dim=1)
                features[rows] = torch.nn.functional.normalize(means, dim=1).numpy()
                if progress is not None:
                    progress(start + len(rows))
        return features
