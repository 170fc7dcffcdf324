"""Ask a coordinator's language model with the unmodified ``openai`` package.

export OPENAI_BASE_URL=http://127.0.0.1:8443/v1
export OPENAI_API_KEY=$(cat ~/.llmos/coordinator/admin.token)
python docs/openai_client.py "Where is my parcel?"
"""

from __future__ import annotations

import sys

from openai import OpenAI


def main() -> None:
    """Ask one question twice: for the whole answer, and for one in pieces."""
    question = sys.argv[1] if len(sys.argv) > 1 else "Where is my parcel?"
    client = OpenAI()  # reads OPENAI_BASE_URL and OPENAI_API_KEY
    model = client.models.list().data[0].id

    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=64
    )
    print(answer.choices[0].message.content)  # noqa: T201  an example for people

    pieces = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=64,
        stream=True,
        stream_options={"include_usage": True},
    )
    for piece in pieces:
        if piece.choices:
            print(piece.choices[0].delta.content or "", end="", flush=True)  # noqa: T201
        elif piece.usage is not None:
            print(f"\n{piece.usage.total_tokens} tokens")  # noqa: T201


if __name__ == "__main__":
    main()
