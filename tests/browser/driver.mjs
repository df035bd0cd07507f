// Drives Chromium by playwright-core as driving.py says, in lines of JSON: `{tab, context, code, values}` in, and
// `{value}` or `{error}` back. A tab is made when it is first spoken of. The code is the body of an async function that
// sees `page`, `context` and `values`.

import { createInterface } from "node:readline";
import { chromium } from "../interop/node_modules/playwright-core/index.mjs";

const AsyncFunction = (async () => {}).constructor;
const [executablePath, patience] = process.argv.slice(2);

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"] });
const contexts = new Map();
const tabs = new Map();

async function tabOf({ tab, context: name, options }) {
  if (tabs.has(tab)) return tabs.get(tab);
  if (!contexts.has(name)) contexts.set(name, await browser.newContext(options));
  const context = contexts.get(name);
  context.setDefaultTimeout(Number(patience));
  const page = await context.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(error.stack));
  page.on("console", (message) => /Content.Security.Policy/i.test(message.text()) && faults.push(message.text()));
  page.on("dialog", (dialog) => dialog.accept());
  tabs.set(tab, { page, context, faults });
  return tabs.get(tab);
}

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  let answer;
  try {
    if (asked.close) {
      await contexts.get(asked.close)?.close();
      contexts.delete(asked.close);
      answer = { value: null };
    } else {
      const { page, context, faults } = await tabOf(asked);
      const value = await new AsyncFunction("page", "context", "faults", "values", asked.code)(page, context, faults, asked.values);
      answer = { value: value ?? null };
    }
  } catch (error) {
    answer = { error: error.stack };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
