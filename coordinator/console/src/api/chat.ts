/** Conversations over `/v1/chat/completions`, as they come. */

import { ask, Problem } from "./api";

export interface Said {
  role: "system" | "user" | "assistant";
  content: string;
}

export interface Asked {
  model: string;
  messages: Said[];
  temperature: number;
  max_tokens: number;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
}

/** The data of server-sent events, out of pieces that are cut anywhere. */
export class EventData {
  private rest = "";

  /** What `piece` completes. */
  take(piece: string): string[] {
    const events = (this.rest + piece).split("\n\n");
    this.rest = events.pop() ?? "";
    return events.map(dataOf).filter((data) => data !== "");
  }
}

function dataOf(event: string): string {
  return event
    .split("\n")
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice("data:".length).trimStart())
    .join("\n");
}

/** Ask, and be told words as they come; gives what it took, if the model said so. */
export async function chat(
  asked: Asked,
  onWords: (words: string) => void,
  signal: AbortSignal,
): Promise<Usage | null> {
  const response = await ask("POST", "/v1/chat/completions", {
    body: { ...asked, stream: true, stream_options: { include_usage: true } },
    signal,
  });
  const events = new EventData();
  const decoder = new TextDecoder();
  let usage: Usage | null = null;
  const reader = response.body?.getReader();
  if (!reader) return null;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return usage;
    for (const data of events.take(decoder.decode(value, { stream: true }))) {
      if (data === "[DONE]") return usage;
      const told = JSON.parse(data);
      if (told.error) {
        const { code, message } = told.error;
        throw new Problem({ status: 200, code: String(code ?? ""), detail: String(message) });
      }
      const words = told.choices?.[0]?.delta?.content;
      if (words) onWords(words);
      usage = told.usage ?? usage;
    }
  }
}
