import { Problem, send } from "./client";

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

/** The data of server-sent events out of pieces of a stream, wherever those are cut. */
export class EventData {
  private rest = "";

  /** The events that `piece` completes. */
  take(piece: string): string[] {
    const events = (this.rest + piece).split(/\r?\n\r?\n/);
    this.rest = events.pop() ?? "";
    return events
      .map((event) =>
        event
          .split(/\r?\n/)
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).replace(/^ /, ""))
          .join("\n"),
      )
      .filter((data) => data !== "");
  }
}

/** Asks a model and gives its words as they come; the last thing told is what it took. */
export async function chat(
  asked: Asked,
  onWords: (words: string) => void,
  signal: AbortSignal,
): Promise<Usage | null> {
  const answer = await send(
    "POST",
    "/v1/chat/completions",
    { ...asked, stream: true, stream_options: { include_usage: true } },
    signal,
  );
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  const events = new EventData();
  let usage: Usage | null = null;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return usage;
    for (const data of events.take(value)) {
      if (data === "[DONE]") return usage;
      const told = JSON.parse(data);
      if (told.error) throw new Problem(200, String(told.error.code ?? ""), told.error.message);
      const words = told.choices?.[0]?.delta?.content;
      if (words) onWords(words);
      if (told.usage) usage = told.usage;
    }
  }
}
