// Owns the one stream of all tabs, in a SharedWorker. It follows the events while a tab is there.

import { follow } from "./stream.js";

const ports = new Set();
let stop = null;
let url = null;

addEventListener("connect", ({ ports: [port] }) => {
  port.onmessage = ({ data }) => {
    if (data.leave) {
      ports.delete(port);
      if (!ports.size) end();
      return;
    }
    ports.add(port);
    // A new session has other events, whoever learns of it first.
    if (data.again) end();
    url = data.url;
    stop ??= follow(url, (news) => ports.forEach((one) => one.postMessage(news)));
    if (!data.again) port.postMessage({ kind: "open" });
  };
  port.start();
});

function end() {
  stop?.();
  stop = null;
}
