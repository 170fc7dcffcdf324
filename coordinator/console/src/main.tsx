import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./app";
import { followSettings } from "./lib/settings";
import "./styles.css";

followSettings();
const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <App />
    </StrictMode>,
  );
}
