import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

export default defineConfig({
  base: "/console/",
  plugins: [react()],
  build: {
    target: "es2022",
    // The policy of the pages allows no data: script and no inline style.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 900,
  },
  // `npm run dev` beside a coordinator: LLMOS_URL says where it is.
  server: {
    proxy: Object.fromEntries(
      ["/api", "/v1"].map((path) => [
        path,
        { target: process.env.LLMOS_URL ?? "http://127.0.0.1:8080", ws: true },
      ]),
    ),
  },
  test: { environment: "jsdom", include: ["test/**/*.test.{ts,tsx}"], restoreMocks: true },
});
