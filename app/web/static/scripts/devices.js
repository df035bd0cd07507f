// Owns adding a device: the sheet with the code on this one, and the invitation on the other, which joins only by a click.

import { announce } from "./announcer.js";
import { Refused } from "./api.js";
import { copyButton } from "./clipboard.js";
import { byId, element, wordButton } from "./dom.js";
import { session } from "./session.js";
import { confirm, openSheet } from "./sheets.js";
import { duration, say, sayProblem } from "./words.js";

/** Show the code by which another device joins, and what it will see. Raises what `ask` raises. */
export async function addDevice() {
  const { code, expires_at: end, qr } = await session.addDevice();
  const left = element("p", { class: "muted" });
  const sheet = openSheet(
    say("device.title"),
    element("p", { text: say("device.how") }),
    element("div", { class: "invitation" },
      qr ? element("img", { class: "qr", alt: say("device.qr"), src: `data:image/svg+xml,${encodeURIComponent(qr)}` }) : null,
      element("div", {},
        element("p", { text: say("device.code") }),
        element("p", { class: "code", dir: "ltr", text: code }),
        copyButton(`${location.href.split("#")[0]}#join=${code}`, say("share.copy")),
        left,
      ),
    ),
    element("p", { text: say("device.sees", { count: session.current.uploads }) }),
  );
  const before = session.current.devices;
  const count = () => {
    const seconds = (Date.parse(end) - Date.now()) / 1000;
    left.textContent = seconds > 0 ? say("device.left", { time: duration(seconds) }) : say("device.over");
  };
  const joined = () => session.current.devices > before && left.replaceChildren(say("device.joined"));
  const timer = setInterval(() => (session.current.devices > before ? joined() : count()), 1_000);
  count();
  session.addEventListener("change", joined);
  sheet.addEventListener("close", () => {
    clearInterval(timer);
    session.removeEventListener("change", joined);
  });
}

/** What a page does that was opened by such a code: it asks, and joins by a click alone. */
export function offerJoining() {
  const code = /^#join=([A-Za-z0-9-]+)$/.exec(location.hash)?.[1];
  if (!code) return;
  history.replaceState(null, "", location.pathname + location.search);
  showJoining(code);
}

/** The sheet of joining: with a code that came by a link, or with a field for one that is typed. */
export function showJoining(code = "") {
  const field = element("input", { value: code, autocomplete: "off", autocapitalize: "characters", spellcheck: "false", dir: "ltr", required: true, placeholder: "ABCD-EFGH-JKMN" });
  const refusal = element("p", { class: "refusal", role: "alert" });
  const own = session.current?.uploads ?? 0;
  const form = element("form", { submit: join },
    element("p", { text: say("join.what") }),
    element("p", { text: own ? say("join.own", { count: own }) : say("join.nothing") }),
    element("label", { hidden: Boolean(code) }, element("span", { text: say("join.code") }), field),
    refusal,
    element("footer", {}, element("button", { class: "strong" }, element("span", { text: say("join.word") })), wordButton(null, say("join.not"), () => sheet.close())),
  );
  const sheet = openSheet(say("join.title"), form);

  async function join(event) {
    event.preventDefault();
    try {
      await session.join(field.value.trim().toUpperCase());
      sheet.close();
      announce(say("join.done"));
    } catch (error) {
      const isUsed = error instanceof Refused && error.document.code === "forbidden";
      refusal.textContent = isUsed ? say("join.refused") : error instanceof Refused ? sayProblem(error.document) : say("connection.away");
    }
  }
}

/** Ask once, then end the session for every device. */
export async function endSession() {
  const words = { count: session.current?.uploads ?? 0 };
  if (!(await confirm(say("end.title"), say("end.text", words), say("end.word"), "danger"))) return false;
  await session.end();
  return true;
}

/** Say how many devices there are, beside the button that adds one. */
export function showDevices() {
  const show = () => {
    const count = session.current?.devices ?? 1;
    byId("devices").textContent = count > 1 ? say("devices", { count }) : "";
  };
  session.addEventListener("change", show);
  show();
}
