// Owns that all tabs share one stream of events: by a SharedWorker; where there is none, by the tab that holds a lock
// and passes on what it hears; where there are no locks either, by a stream of each tab.

import { base } from "./api.js";
import { follow } from "./stream.js";

const NAME = `waybill${base} events`;

/** Pause between two readings of the history while the stream is refused. */
const PAUSE = 5_000;

/** Follow the session's events. `told` gets what stream.js tells, and `{kind: "reset"}` now and then while no stream is
 * to be had. Returns a function that follows another session from now on. */
export function listen(told) {
  const url = new URL(`${base}/api/ingestion/events`, location.href).href;
  let timer = null;
  const hear = (news) => {
    if (news.kind === "closed") timer ??= setInterval(() => document.hidden || told({ kind: "reset" }), PAUSE);
    if (news.kind === "open") {
      clearInterval(timer);
      timer = null;
    }
    told(news);
  };
  if (globalThis.SharedWorker) return listenByWorker(url, hear);
  if (navigator.locks) return listenByLock(url, hear);
  return listenAlone(url, hear);
}

function listenByWorker(url, hear) {
  const { port } = new SharedWorker(new URL("stream_worker.js", import.meta.url), { type: "module", name: NAME });
  port.onmessage = ({ data }) => hear(data);
  port.start();
  port.postMessage({ url });
  addEventListener("pagehide", () => port.postMessage({ leave: true }));
  addEventListener("pageshow", ({ persisted }) => persisted && port.postMessage({ url }));
  return () => port.postMessage({ url, again: true });
}

function listenByLock(url, hear) {
  const channel = new BroadcastChannel(NAME);
  channel.onmessage = ({ data }) => (data.again ? again() : hear(data));
  let again = () => {};
  navigator.locks.request(NAME, () => {
    const pass = (news) => {
      hear(news);
      channel.postMessage(news);
    };
    let stop = follow(url, pass);
    again = () => {
      stop();
      stop = follow(url, pass);
    };
    return new Promise(() => {}); // the lock is held as long as this tab is there
  });
  return () => {
    again();
    channel.postMessage({ again: true });
  };
}

function listenAlone(url, hear) {
  let stop = follow(url, hear);
  return () => {
    stop();
    stop = follow(url, hear);
  };
}
