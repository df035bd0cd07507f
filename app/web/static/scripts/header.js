// Owns the header: what is used of the quota, and the menu with theme, code and end.

import { state } from "./api.js";
import { addDevice, endSession, showDevices, showJoining } from "./devices.js";
import { byId, setAttribute, setText } from "./dom.js";
import { forgetAll } from "./kept.js";
import { session } from "./session.js";
import { uploads } from "./uploads.js";
import { say, size, sizeOf } from "./words.js";

export function showHeader(attempt) {
  session.quota = state.quota;
  session.addEventListener("change", showQuota);
  showQuota();
  showDevices();
  byId("add-device").addEventListener("click", () => attempt(addDevice));
  byId("enter-code").addEventListener("click", () => closeMenu() || showJoining());
  byId("end-session").addEventListener("click", () => closeMenu() || attempt(end));
  showTheme();
  const menu = byId("menu");
  addEventListener("click", ({ target }) => menu.contains(target) || closeMenu());
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    event.stopPropagation();
    closeMenu();
    menu.firstElementChild.focus();
  });
}

function closeMenu() {
  byId("menu").open = false;
}

function showQuota() {
  const { quota, current } = session;
  const used = quota?.used ?? current?.bytes ?? 0;
  const meter = byId("quota-meter");
  meter.hidden = !quota?.limit;
  if (quota?.limit) {
    meter.value = used / quota.limit;
    setAttribute(meter, "title", say("quota.left", { left: size(quota.left) }));
    setText(byId("quota-words"), say("quota.of", { used: sizeOf(used, quota.limit), limit: size(quota.limit) }));
  } else {
    setText(byId("quota-words"), current?.uploads ? say("quota.used", { used: size(used) }) : "");
  }
  byId("end-session").hidden = !current;
}

async function end() {
  if (!(await endSession())) return;
  uploads.cancelAll();
  await forgetAll();
  location.reload();
}

function showTheme() {
  const root = document.documentElement;
  const choices = document.querySelectorAll("input[name=theme]");
  for (const choice of choices) {
    choice.checked = choice.value === (root.dataset.theme ?? "");
    choice.addEventListener("change", () => {
      if (choice.value) root.dataset.theme = choice.value;
      else delete root.dataset.theme;
      try {
        if (choice.value) localStorage.setItem("waybill-theme", choice.value);
        else localStorage.removeItem("waybill-theme");
      } catch {
        // A browser that keeps nothing has the theme until the page is left.
      }
    });
  }
}
