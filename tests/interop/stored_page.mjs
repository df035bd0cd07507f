// Opens what is stored in every way a page can, and the same from a plain server beside it, and tells what ran.
//
// The plan: `cases`, each with a name, a type and bytes (base64); `same`, whether the service is of this page's origin,
// which stores them then; `at`, where it and the plain files are; `controls`, the attempts of which the plain ones must
// run; `next`, the page that goes on.

const ran = new Set();
const attempts = [];

const heard = ({ data }) => data?.ran && ran.add(data.ran);
addEventListener("message", heard);
// What runs in this page itself finds this.
globalThis.didRun = (url) => ran.add(url);

function element(tag, attributes) {
  const made = Object.assign(document.createElement(tag), attributes);
  document.body.append(made);
}

const ways = {
  tab: (url) => open(url),
  iframe: (src) => element("iframe", { src }),
  object: (data) => element("object", { data }),
  embed: (src) => element("embed", { src }),
  img: (src) => element("img", { src }),
  script: (src) => element("script", { src }),
  "module script": (src) => element("script", { src, type: "module" }),
  import: (url) => import(url).catch(() => {}),
  style: (href) => {
    const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href });
    link.onload = () => ran.add(href);
    document.head.append(link);
  },
  worker: (url) => {
    new Worker(url).onmessage = heard;
  },
  "module worker": (url) => {
    new Worker(url, { type: "module" }).onmessage = heard;
  },
  "shared worker": (url) => {
    new SharedWorker(url).port.onmessage = heard;
  },
  "service worker": (url) =>
    navigator.serviceWorker.register(url).then(
      (registered) => {
        ran.add(url);
        return registered.unregister();
      },
      () => {},
    ),
};
// These load nothing from another origin, whatever it answers.
const ofOwnOriginAlone = ["worker", "module worker", "shared worker", "service worker", "import", "module script"];

async function tell(event, more = {}) {
  const answer = await fetch("/tell", { method: "POST", body: JSON.stringify({ event, ...more }) });
  return answer.json();
}

async function main() {
  const plan = await (await fetch("/plan")).json();
  if (plan.same) {
    for (const one of plan.cases) {
      const bytes = Uint8Array.from(atob(one.content), (character) => character.charCodeAt(0));
      const headers = one.type ? { "Content-Type": one.type } : {};
      const answer = await fetch(`/api/ingestion/uploads/${one.name}`, { method: "PUT", body: new Blob([bytes]), headers });
      one.stored = (await answer.json()).links.content;
    }
    await tell("stored", { urls: Object.fromEntries(plan.cases.map((one) => [one.name, one.stored])) });
  }
  for (const [way, attempt] of Object.entries(ways)) {
    if (!plan.same && ofOwnOriginAlone.includes(way)) continue;
    // Those that must not run go first: once the others have run, these had their time.
    for (const where of ["stored", "plain"]) {
      for (const one of plan.cases) {
        const name = `${one.name} by ${way}`;
        if (where === "plain" && !plan.controls.includes(name)) continue;
        const url = `${plan.at}${where === "stored" ? one.stored : `/plain/${one.name}`}?${new URLSearchParams({ way, from: location.origin })}`;
        attempts.push({ name, where, url });
        attempt(url);
      }
    }
  }
  // Not before all that is stored has come; and then the last thing that would run goes behind it.
  const wanted = attempts.filter(({ where }) => where === "plain").map(({ url }) => url);
  const stored = attempts.length - wanted.length;
  let patience = true;
  let came = 0;
  const until = async (all) => {
    while (patience && !all()) {
      ({ patience, came } = await tell("waiting"));
      await new Promise((go) => setTimeout(go, 50));
    }
  };
  await until(() => came >= stored && wanted.every((url) => ran.has(url)));
  const last = `${plan.at}/plain/html?${new URLSearchParams({ way: "iframe", from: location.origin, last: true })}`;
  attempts.push({ name: "html by iframe", where: "plain", url: last });
  ways.iframe(last);
  await until(() => ran.has(last));
  const { next } = await tell("done", { attempts, ran: [...ran] });
  if (next) location.href = next;
}

main().catch((error) => tell("broken", { error: String(error?.stack ?? error) }));
