import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./app";
import { Toasts } from "./components/parts";
import { Translated } from "./i18n";
import { Provided } from "./state";
import "./style/tokens.css";
import "./style/base.css";
import "./style/layout.css";
import "./style/parts.css";

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <Translated>
      <Provided>
        <Toasts>
          <App />
        </Toasts>
      </Provided>
    </Translated>
  </StrictMode>,
);
