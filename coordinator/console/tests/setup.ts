import { cleanup } from "@testing-library/react";
import { afterEach, beforeEach, vi } from "vitest";
import { live } from "../src/api/live";
import { language } from "../src/lib/settings";
import { FakeSocket } from "./support/fake_socket";

// What jsdom lacks of a browser.
HTMLDialogElement.prototype.showModal = function (this: HTMLDialogElement) {
  this.open = true;
};
HTMLDialogElement.prototype.close = function (this: HTMLDialogElement) {
  this.open = false;
};
window.scrollTo = () => {};
window.matchMedia = (media: string) =>
  Object.assign(new EventTarget(), { matches: false, media }) as unknown as MediaQueryList;
globalThis.ResizeObserver = class {
  observe() {}
  unobserve() {}
  disconnect() {}
};

Blob.prototype.arrayBuffer = function (this: Blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as ArrayBuffer);
    reader.onerror = () => reject(reader.error);
    reader.readAsArrayBuffer(this);
  });
};

// No canvas there: a chart's numbers are looked for in its table.
vi.mock("../src/components/echarts", () => ({
  init: () => ({ setOption: () => {}, resize: () => {}, dispose: () => {} }),
}));

beforeEach(() => {
  FakeSocket.made = [];
  vi.stubGlobal("WebSocket", FakeSocket);
  language.set("en");
  window.location.hash = "";
});

afterEach(() => {
  cleanup();
  live.stop();
  vi.unstubAllGlobals();
});
