import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

export default defineConfig({
  base: "/console/",
  plugins: [react()],
  build: {
    // The content security policy allows 'self' alone: no data: addresses.
    assetsInlineLimit: 0,
    // ECharts in a file of its own, which pages without charts do not fetch.
    chunkSizeWarningLimit: 700,
  },
  server: {
    // A coordinator on this machine; `changeOrigin` stays off so that Origin equals Host.
    proxy: Object.fromEntries(
      ["/api", "/v1"].map((path) => [
        path,
        { target: process.env.LLMOS_COORDINATOR ?? "http://127.0.0.1:8000", ws: true },
      ]),
    ),
  },
  test: {
    environment: "jsdom",
    include: ["tests/**/*.test.{ts,tsx}"],
    setupFiles: ["tests/setup.ts"],
    restoreMocks: true,
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
});
