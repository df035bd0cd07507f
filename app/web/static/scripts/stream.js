// Owns one connection to the session's events, and tells what comes of it. It runs in a worker that all tabs share, or
// in a tab (events.js).

const KINDS = ["created", "progress", "processing", "completed", "failed", "expired", "deleted"];

/** Pause before a refused stream is asked for again: too many are open, or there is no session yet. */
const PAUSE = 30_000;

/** Follow the events at a URL. `tell` gets `{kind: "open"}`, `{kind: "reset"}`, `{kind: "closed"}` when the stream is
 * refused, and `{kind: "upload", name, data}` of each event. Returns what ends it. */
export function follow(url, tell) {
  let source = null;
  let timer = null;

  const open = () => {
    source = new EventSource(url);
    source.onopen = () => tell({ kind: "open" });
    source.onerror = () => {
      // A broken connection is opened again by the browser; a refusal closes it for good.
      if (source.readyState !== EventSource.CLOSED) return tell({ kind: "broken" });
      tell({ kind: "closed" });
      timer = setTimeout(open, PAUSE);
    };
    source.addEventListener("reset", () => tell({ kind: "reset" }));
    for (const name of KINDS) {
      source.addEventListener(`upload.${name}`, ({ data }) => tell({ kind: "upload", name, data: JSON.parse(data) }));
    }
  };

  open();
  return () => {
    clearTimeout(timer);
    source.close();
  };
}
