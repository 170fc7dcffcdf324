import { describe, expect, it, vi } from "vitest";
import { chat, EventData } from "../src/api/chat";

const STREAM = [
  'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n',
  'data: {"choices":[{"delta":{"content":"Grüße, "}}]}\n\n',
  ": still here\n\n",
  'data: {"choices":[{"delta":{"content":"你好"}}]}\n\n',
  'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
  "data: [DONE]\n\n",
].join("");

const ASKED = { model: "m", messages: [], temperature: 0, max_tokens: 5 };

function answers(pieces: Uint8Array[]): void {
  vi.stubGlobal("fetch", async () => {
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        for (const piece of pieces) controller.enqueue(piece);
        controller.close();
      },
    });
    return new Response(body);
  });
}

async function heard(): Promise<[string, unknown]> {
  let words = "";
  const usage = await chat(ASKED, (more) => (words += more), new AbortController().signal);
  return [words, usage];
}

describe("a conversation", () => {
  it("is the same wherever the stream is cut, in the middle of a letter too", async () => {
    const bytes = new TextEncoder().encode(STREAM);
    for (let at = 0; at <= bytes.length; at += 1) {
      answers([bytes.slice(0, at), bytes.slice(at)]);
      expect(await heard()).toEqual(["Grüße, 你好", { prompt_tokens: 3, completion_tokens: 2 }]);
    }
    answers([...bytes].map((byte) => Uint8Array.of(byte)));
    expect((await heard())[0]).toBe("Grüße, 你好");
  });

  it("ends with what went wrong in the middle of it", async () => {
    const told = 'data: {"error":{"message":"the engine died","code":"engine"}}\n\n';
    answers([new TextEncoder().encode(STREAM.slice(0, STREAM.indexOf(": still")) + told)]);
    await expect(heard()).rejects.toMatchObject({ message: "the engine died", code: "engine" });
  });

  it("waits for the end of an event", () => {
    const events = new EventData();
    expect(events.take("data: a")).toEqual([]);
    expect(events.take("\n")).toEqual([]);
    expect(events.take("data: b\n\ndata: c\n\nda")).toEqual(["a\nb", "c"]);
  });
});
