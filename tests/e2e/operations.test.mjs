// What an administrator does to a server that is in use: nobody in a call notices a reload; a drain lets calls end.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { startChromium } from "./lib/browsers.mjs";
import { SdkPage } from "./lib/sdk.mjs";
import { setStage } from "./lib/stage.mjs";
import { until } from "./lib/until.mjs";

const TEST = { timeout: 120_000 };
let lab, server, browser;

before(async () => {
  ({ lab, server } = await setStage());
  browser = await startChromium(lab, server, "home");
}, { timeout: 60_000 });

after(async () => {
  await browser?.close();
  lab?.close();
});

const open = (name) => SdkPage.open(browser, "livekit-client", name);

async function call(room, ...names) {
  const pages = await Promise.all(names.map(open));
  await Promise.all(pages.map((page) => page.connect(server.token(room, page.name))));
  await Promise.all(pages.map((page) => page.publishOwn()));
  await Promise.all(pages.map((page) => page.seesAndHears()));
  return pages;
}

const ANALYZE = "/usr/bin/systemd-analyze";
test("the unit leaves little to an intruder", { skip: !existsSync(ANALYZE) && "needs systemd-analyze" }, () => {
  const unit = new URL("../../systemd/postern.service", import.meta.url).pathname;
  const said = execFileSync(ANALYZE, ["security", "--offline=true", "--no-pager", unit], { encoding: "utf8" });
  assert.ok(Number(said.match(/Overall exposure level for postern.service: ([\d.]+)/)[1]) <= 2, said);
});

test("a reload in mid call: what can change does, nobody notices", TEST, async () => {
  const [ada, bob] = await call("reload", "ada", "bob");
  const config = readFileSync(server.config, "utf8");
  writeFileSync(server.config, config.replace("streams_together = 1", "streams_together = 1\nparticipants_max = 2").replace("workers = 2", "workers = 1"));
  assert.equal(server.command("reload"), "applied: rooms.participants_max\nwaits for a restart: server.workers\n");
  const eve = await open("eve");
  await assert.rejects(eve.connect(server.token("reload", "eve")), /full|503|could not/i);
  writeFileSync(server.config, config);
  assert.equal(server.command("reload"), "applied: rooms.participants_max\n");
  await eve.connect(server.token("reload", "eve"));
  await Promise.all([ada.seesAndHears(), bob.seesAndHears(), eve.seesAndHears()]);
  for (const page of [ada, bob]) {
    const events = await page.ask(() => window.events.map(([event]) => event));
    assert.ok(!events.some((event) => /reconnect|disconnected/i.test(event)), events.join());
  }
  await Promise.all([ada.close(), bob.close(), eve.close()]);
});

test("a drain: calls go on and take newcomers, idle rooms and new ones are sent away, and with the last call the server ends", TEST, async () => {
  const [ada, bob] = await call("drained", "ada", "bob");
  const idle = await open("idle");
  await idle.connect(server.token("idle", "idle"));
  assert.match(server.command("drain", "--within", "60"), /^process \d+ drains/);
  await until("it is not ready any more", 5_000, () => server.get("/readyz").startsWith("draining"));
  await until("who is idle is told to come back", 20_000, async () => (await idle.events("reconnecting")).length > 0);
  const late = await open("late");
  await assert.rejects(late.connect(server.token("another", "late"), {}, { maxRetries: 0 }), "no new room");
  assert.ok(late.said.some((line) => line.includes("status of 503")), late.said.join("\n"));
  await late.connect(server.token("drained", "late"));
  await Promise.all([ada.seesAndHears(), bob.seesAndHears(), late.seesAndHears()]);
  await Promise.all([ada.close(), bob.close(), late.close()]);
  assert.equal(await server.ended, 0, server.log.slice(-2000));
  await server.start();
  await until("who was idle is back", 60_000, async () => (await idle.ask(() => window.room.state)) === "connected");
  await idle.close();
});

test("a drain whose time is up, and one that is told twice", TEST, async () => {
  let [ada, bob] = await call("up", "ada", "bob");
  server.command("drain", "--within", "3");
  assert.equal(await server.ended, 0, server.log.slice(-2000));
  assert.match(server.log, /everybody is told to come back/);
  await server.start();
  await Promise.all([ada.flows(60_000), bob.flows(60_000)]);
  server.command("drain", "--within", "3600");
  await until("it drains", 5_000, () => server.get("/readyz").startsWith("draining"));
  await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
  server.signal("SIGTERM");
  assert.equal(await server.ended, 0);
  assert.match(server.log, /told a second time/);
  await Promise.all([ada.close(), bob.close()]);
});
