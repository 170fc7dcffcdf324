"""Between texts and tokens, in an engine's process: conversations in, pieces of answers out.

X1  a conversation becomes the very tokens that adapters were trained with
    (:func:`shared.models.pytorch.prompt_ids`), without torch, which transformers' tokenizers import
X2  pieces put together are the whole answer decoded at once, up to the first stop string
X3  a piece holds whole characters only, and nothing in which a stop string may still begin
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from coordinator.inference.engine import Alternative, ChatMessage, Piece, TokenLogprob
from coordinator.inference.token_runtime import Emitted
from shared.errors import ModelError, PromptRefused
from shared.extras import require

_EXTRA: Final = "llm"
_CUT: Final = "\N{REPLACEMENT CHARACTER}"
"""What half a character decodes to: tokens are pieces of bytes."""

_NAMES: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")


class TextModel:
    """A model's tokenizer and chat template, read from its folder."""

    def __init__(self, folder: Path) -> None:
        """Read ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

        Raises:
            ModelError: one of them is damaged, or the template is none.
            DependencyMissing: the extra ``llm`` is not installed.
        """
        tokenizers: Any = require("tokenizers", extra=_EXTRA)
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            table = json.loads(path.read_text(encoding="utf-8"))
        except Exception as err:  # the library raises bare Exception for a bad file
            raise ModelError(f"{path} is no tokenizer that can be used: {err}") from err
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._in_bytes = "ByteLevel" in json.dumps(table.get("decoder"))
        config = _config(folder)
        special = {name: _content(config.get(name)) for name in _NAMES}
        self._special = {name: text for name, text in special.items() if text is not None}
        self._end = self._tokenizer.token_to_id(self._special.get("eos_token", ""))
        self._template = _template(folder, config)
        self._vocabulary = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def tokens_of(self, prompt: Sequence[ChatMessage] | Sequence[int] | str) -> list[int]:
        """Tokens of a conversation up to where the model's turn begins (X1), or of a text.

        Raises:
            PromptRefused: the template does not take such a conversation, or a token is unknown.
        """
        if isinstance(prompt, str):
            return list(self._encoded(prompt, special=True))
        if not prompt:
            return []
        turns = [turn for turn in prompt if isinstance(turn, ChatMessage)]
        if len(turns) == len(prompt):
            return self._conversation(turns)
        tokens = [token for token in prompt if isinstance(token, int)]
        if any(token < 0 for token in tokens):
            raise PromptRefused("a token is a number from 0")
        return tokens

    def _conversation(self, turns: Sequence[ChatMessage]) -> list[int]:
        if self._template is None:
            ids = list(self._encoded("".join(turn.content for turn in turns), special=True))
            if ids and ids[-1] == self._end:  # some tokenizers end every text, but this one goes on
                ids.pop()
            return ids or ([self._end] if self._end is not None else [])
        jinja2: Any = require("jinja2", extra=_EXTRA)
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as err:
            raise PromptRefused(f"the model's chat template refuses this: {err}") from err
        return list(self._encoded(text, special=False))

    def _encoded(self, text: str, *, special: bool) -> Sequence[int]:
        try:
            ids: Sequence[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        except (TypeError, UnicodeError) as err:  # half a character, which JSON can spell
            raise PromptRefused("the text holds half a character (a lone surrogate)") from err
        return ids

    def stream(
        self, *, stop: Sequence[str], ends: Collection[int], logprobs: bool = False
    ) -> TextStream:
        """Begin to turn the tokens of one answer into text.

        Args:
            stop: The text ends before the first of these.
            ends: Tokens that end the turn, which are not shown.
            logprobs: Whether pieces carry them.
        """
        alternative = self.alternative if logprobs else None
        return TextStream(self._decoded, stop=stop, ends=ends, alternative=alternative)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def alternative(self, token: int, logprob: float) -> Alternative:
        """A token as text and bytes."""
        data = self._bytes(token)
        return Alternative(data.decode(errors="replace"), data, logprob)

    def _bytes(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token)
        if piece is None:  # models have more places than their tokenizers have tokens
            return b""
        if self._in_bytes:
            try:
                return bytes(_byte_of()[character] for character in piece)
            except KeyError:  # an added token, written as it is
                return str(piece).encode()
        if (match := _BYTE.fullmatch(piece)) is not None:
            return bytes([int(match.group(1), 16)])
        return str(piece).replace("▁", " ").encode()


class TextStream:
    """The text of one answer while its tokens come in (X2, X3)."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        stop: Sequence[str],
        ends: Collection[int],
        alternative: Callable[[int, float], Alternative] | None,
    ) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ends = ends
        self._alternative = alternative
        self._tokens: list[int] = []
        # Decoded is from the last token that was shown on: its neighbours decide about spaces
        # and halves, while the whole answer would be decoded again for each of its tokens.
        self._from = 0
        self._to = 0
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string came: the rest is not wanted."""
        return self._stopped

    def feed(self, emitted: Emitted) -> Piece | None:
        """Take a token; what may be shown now, or ``None``."""
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._alternative is not None:
            chosen = self._alternative(emitted.token, emitted.logprob)
            others = tuple(self._alternative(*each) for each in emitted.likeliest)
            logprobs = (TokenLogprob(chosen, others),)
        text = ""
        if emitted.token not in self._ends:
            self._tokens.append(emitted.token)
            text = self._shown(self._whole_characters())
        return Piece(text, logprobs) if text or logprobs else None

    def finish(self) -> Piece | None:
        """What was held back, when no more tokens come."""
        if self._stopped:
            return None
        rest = self._decode(self._tokens[self._from :])
        new = rest[len(self._decode(self._tokens[self._from : self._to])) :].rstrip(_CUT)
        text = self._shown(new)
        if not self._stopped:
            text += self._held
        return Piece(text) if text else None

    def _whole_characters(self) -> str:
        before = self._decode(self._tokens[self._from : self._to])
        now = self._decode(self._tokens[self._from :])
        if len(now) <= len(before) or now.endswith(_CUT):
            return ""
        self._from, self._to = self._to, len(self._tokens)
        return now[len(before) :]

    def _shown(self, new: str) -> str:
        """What may be shown of the text held so far and ``new``; looks for stop strings."""
        text, self._held = self._held + new, ""
        places = ((text.find(each), len(each)) for each in self._stop)
        if cuts := [(at + length, at) for at, length in places if at >= 0]:
            # The one that is whole first, so that it does not matter how tokens cut the text.
            self._stopped = True
            return text[: min(cuts)[1]]
        held = max((_overlap(text, each) for each in self._stop), default=0)
        if held:
            text, self._held = text[:-held], text[-held:]
        return text


def _overlap(text: str, stop: str) -> int:
    """How much of the end of ``text`` may be the beginning of ``stop``."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


@cache
def _byte_of() -> Mapping[str, int]:
    """Which byte each character of a byte-level vocabulary stands for.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019: printable
    characters of Latin-1 stand for themselves, the other bytes for characters from 256 on.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as err:
        raise ModelError(f"{path} cannot be read: {err}") from err
    if not isinstance(table, dict):
        raise ModelError(f"{path} is not one JSON object")
    return table


def _content(token: Any) -> str | None:
    """The text of a special token, which is written alone or with its properties."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _template(folder: Path, config: Mapping[str, Any]) -> Any:
    """The chat template, or ``None``: read and rendered as transformers does.

    Raises:
        ModelError: it is no template.
    """
    path = folder / "chat_template.jinja"
    text = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(text, list):  # several by name
        text = next((each.get("template") for each in text if each.get("name") == "default"), None)
    if not isinstance(text, str):
        return None
    jinja2: Any = require("jinja2", extra=_EXTRA)
    extensions: Any = require("jinja2.ext", extra=_EXTRA)
    sandbox: Any = require("jinja2.sandbox", extra=_EXTRA)

    class Generation(extensions.Extension):  # type: ignore[misc]  # the library is met here only
        """Marks what the model wrote; of no meaning when a template is only rendered."""

        tags: Final = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as err:
        raise ModelError(f"the chat template of {folder} is none: {err}") from err
