// The dashboard beside a call: what it shows is so, what it does happens, and names that participants give themselves do no harm.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { after, before, test } from "node:test";
import { startChromium } from "./lib/browsers.mjs";
import { SdkPage } from "./lib/sdk.mjs";
import { setStage } from "./lib/stage.mjs";
import { until } from "./lib/until.mjs";

const TEST = { timeout: 120_000 };
const SCREENS = new URL("../../target/screens", import.meta.url).pathname;
const HOSTILE = `<img src=x onerror=alert(1)>${"x".repeat(150)}`;
let lab, server, office, desk, ada, eve;

before(async () => {
  ({ lab, server } = await setStage());
  office = await startChromium(lab, server, "office");
  desk = await startChromium(lab, server, "server");
}, { timeout: 60_000 });

after(async () => {
  await Promise.allSettled([office?.close(), desk?.close()]);
  lab?.close();
});

/** A page of the dashboard; what its console says against it gathers in `said`. */
async function look(options = {}) {
  const page = await (await desk.newContext({ viewport: { width: 1440, height: 900 }, ...options })).newPage();
  page.said = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && page.said.push(message.text()));
  page.on("pageerror", (error) => page.said.push(String(error)));
  await page.goto("http://127.0.0.1:7881/");
  return page;
}

async function shoot(page, name) {
  mkdirSync(SCREENS, { recursive: true });
  await page.screenshot({ path: `${SCREENS}/${name}.png`, fullPage: true });
}

const text = (page) => page.evaluate(() => document.body.innerText);
const row = (page, identity) => page.locator("tr", { hasText: identity });

test("it shows who is there, over which path, with what", TEST, async () => {
  const page = await look();
  await until("an empty server says what to do", 10_000, async () => (await text(page)).includes("Point an app at wss://postern.test"));
  await shoot(page, "dashboard-empty");
  lab.firewall("tls");
  [ada, eve] = [await SdkPage.open(office, "livekit-client", "ada"), await SdkPage.open(office, "livekit-client", "eve")];
  await ada.connect(server.token("ward 7", "ada", "--name", "Ada Lovelace"));
  await eve.connect(server.token("ward 7", "eve", "--name", HOSTILE));
  await Promise.all([ada, eve].map((one) => one.publishOwn()));
  await Promise.all([ada.seesAndHears(), eve.seesAndHears()]);
  await until("both are shown, with their path", 15_000, async () => (await row(page, "Ada Lovelace").count()) === 1 && (await row(page, "Ada Lovelace").innerText()).includes("relay TLS"));
  await until("figures of both are there", 20_000, async () => /↑ [\d.]+ kbit\/s|↑ [\d.]+ Mbit\/s/.test(await row(page, "Ada Lovelace").innerText()) && /\d+( ± \d+)? ms/.test(await row(page, HOSTILE).innerText()));
  await until("layers are there", 15_000, async () => /eve camera\s*(low|medium|high) of high/.test(await row(page, "Ada Lovelace").innerText()));
  const shown = await text(page);
  assert.ok(shown.includes(HOSTILE) && (await page.locator("img").count()) === 0, "a name is text");
  assert.match(shown, /Ada Lovelace|ada joined/);
  await shoot(page, "dashboard-desktop");
  await page.locator("#theme").click();
  await shoot(page, "dashboard-desktop-other-theme");
  assert.deepEqual(page.said, []);
  const phone = await look({ viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, colorScheme: "dark" });
  await until("the phone shows them too", 10_000, async () => (await row(phone, "Ada Lovelace").count()) === 1);
  assert.ok(await phone.evaluate(() => document.documentElement.scrollWidth <= 390), "nothing hangs over");
  await shoot(phone, "dashboard-phone");
  await Promise.all([page.context().close(), phone.context().close()]);
});

test("it mutes and removes", TEST, async () => {
  const page = await look();
  await row(page, "Ada Lovelace").getByRole("button", { name: "Mute camera of Ada Lovelace" }).click();
  await until("ada's SDK knows that it is muted", 10_000, () => ada.ask(() => !window.room.localParticipant.isCameraEnabled));
  await until("the row shows it", 10_000, async () => (await row(page, "Ada Lovelace").getByRole("button", { name: "Unmute camera of Ada Lovelace" }).count()) === 1);
  await row(page, "Ada Lovelace").getByRole("button", { name: "Unmute camera of Ada Lovelace" }).click();
  await until("it says why not", 10_000, async () => (await text(page)).includes("rooms.enable_remote_unmute"));
  await row(page, HOSTILE).getByRole("button", { name: "Remove" }).click();
  await page.getByRole("button", { name: "Keep" }).click();
  assert.equal(await eve.ask(() => window.room.state), "connected");
  await row(page, HOSTILE).getByRole("button", { name: "Remove" }).click();
  await page.locator("dialog").getByRole("button", { name: "Remove" }).click();
  await until("eve is out", 10_000, async () => (await eve.ask(() => window.room.state)) === "disconnected");
  await until("it is told of", 10_000, async () => (await text(page)).includes("dashboard: RemoveParticipant eve"));
  await until("and shown no longer", 10_000, async () => (await row(page, HOSTILE).count()) === 0);
  await page.context().close();
});

test("it says when the server drains, and when nobody answers", TEST, async () => {
  const page = await look();
  await until("it is there", 10_000, async () => (await text(page)).includes("ward 7"));
  server.command("drain", "--within", "60");
  await until("it says that the server drains", 10_000, async () => (await text(page)).includes("draining"));
  await server.stop();
  await until("it says that nobody answers", 15_000, async () => /Not reachable since \d\d:\d\d:\d\d/.test(await text(page)));
  await shoot(page, "dashboard-unreachable");
  await page.context().close();
});
