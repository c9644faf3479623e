// What an administrator watches the server with: the real Prometheus takes the metrics, the alert rules and every expression
// of the Grafana dashboard, from a server that carries a call.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { startChromium } from "./lib/browsers.mjs";
import { SdkPage } from "./lib/sdk.mjs";
import { setStage } from "./lib/stage.mjs";
import { until } from "./lib/until.mjs";

const APPLIANCE = new URL("../../appliance", import.meta.url).pathname;
const RULES = join(APPLIANCE, "prometheus/postern.rules.yml");
const skip = !existsSync("/usr/bin/promtool") && "needs the package prometheus";
const TEST = { skip, timeout: 120_000 };
let lab, server, browser;

before(async () => {
  if (skip) return;
  ({ lab, server } = await setStage());
  browser = await startChromium(lab, server, "home");
}, { timeout: 60_000 });

after(async () => {
  await browser?.close();
  lab?.close();
});

const promtool = (...args) => execFileSync("promtool", args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], cwd: join(APPLIANCE, "prometheus") });

test("the alert rules fire when they should, and only then", TEST, () => {
  assert.match(promtool("check", "rules", RULES), /SUCCESS/);
  assert.match(promtool("test", "rules", "postern.rules.test.yml"), /SUCCESS/);
});

/** All expressions of the dashboard, with its variables filled in. */
function expressions() {
  const found = new Map();
  const look = (panel) => {
    for (const target of panel.targets ?? []) {
      if (target.expr) found.set(target.expr.replaceAll("$__rate_interval", "1m").replaceAll("$__interval", "1m").replaceAll("$__range", "1h").replace(/=~?"\$\{?instance[^"]*"/g, '=~".*"'), panel.title);
    }
    panel.panels?.forEach(look);
  };
  JSON.parse(readFileSync(join(APPLIANCE, "grafana/postern.json"), "utf8")).panels.forEach(look);
  return found;
}

test("Prometheus takes the metrics of a call, and every expression has a meaning", TEST, async () => {
  const data = join(lab.dir, "prometheus");
  const config = join(lab.dir, "prometheus.yml");
  const example = readFileSync(join(APPLIANCE, "prometheus/scrape.example.yml"), "utf8");
  const own = example.replace(/(rule_files:\s*\n\s*- ).*/, `$1${RULES}`).replace(/scrape_interval: \w+/g, "scrape_interval: 1s").replace(/scrape_timeout: \w+/g, "scrape_timeout: 1s");
  writeFileSync(config, own);
  promtool("check", "config", config);
  const said = [];
  const prometheus = lab.spawn(lab.names.server, "prometheus", [`--config.file=${config}`, `--storage.tsdb.path=${data}`, "--web.listen-address=127.0.0.1:9090"]);
  prometheus.stderr.on("data", (text) => said.push(String(text)));
  const query = (expression) => {
    const answer = lab.in(lab.names.server, "curl", "-sS", "--max-time", "5", "--get", "http://127.0.0.1:9090/api/v1/query", "--data-urlencode", `query=${expression}`);
    return JSON.parse(answer);
  };
  const value = (expression) => Number(query(expression).data?.result?.[0]?.value?.[1] ?? NaN);
  await until("Prometheus sees the server", 30_000, () => {
    try {
      return value("up") === 1;
    } catch {
      return false;
    }
  }).catch((error) => assert.fail(`${error.message}\n${said.join("")}`));
  const [ada, bob] = await Promise.all(["ada", "bob"].map((name) => SdkPage.open(browser, "livekit-client", name)));
  await Promise.all([ada, bob].map((page) => page.connect(server.token("watched", page.name))));
  await Promise.all([ada, bob].map((page) => page.publishOwn()));
  await Promise.all([ada.seesAndHears(), bob.seesAndHears()]);
  await until("figures of participants are taken", 30_000, () => value("sum(postern_participant_loss_ratio_count)") > 0);
  assert.equal(value("postern_participants"), 2);
  assert.equal(value("sum(postern_join_time_seconds_count)"), 2);
  assert.equal(value('sum(postern_joins_total{outcome="joined"})'), 2);
  assert.equal(value("sum(postern_joins_total)"), 2);
  const latency = value("histogram_quantile(0.5, sum by (le) (postern_forwarding_latency_seconds_bucket))");
  assert.ok(latency < 0.02, `${latency}: ${JSON.stringify(query("postern_forwarding_latency_seconds_bucket").data.result.map((r) => [r.metric.le, r.value[1]]))}`);
  await until("rates have two points", 20_000, () => value("sum(rate(postern_media_bytes_total[1m]))") > 1_000);
  const all = expressions();
  assert.ok(all.size > 30, `${all.size}`);
  const known = new Set(query('count by (__name__) ({job="postern"})').data.result.map((row) => row.metric.__name__));
  for (const [expression, panel] of all) {
    const answer = query(expression);
    assert.equal(answer.status, "success", `${panel}: ${expression}: ${answer.error}`);
    for (const [name] of expression.matchAll(/\bpostern_\w+/g)) assert.ok(known.has(name), `${panel}: ${name} is not there`);
  }
  const groups = JSON.parse(lab.in(lab.names.server, "curl", "-sS", "http://127.0.0.1:9090/api/v1/rules")).data.groups;
  const rules = groups.flatMap((group) => group.rules);
  assert.ok(rules.length > 15);
  for (const rule of rules) {
    for (const [name] of rule.query.matchAll(/\bpostern_\w+/g)) assert.ok(known.has(name), `${rule.name}: ${name} is not there`);
  }
  // Most wait for some minutes before they fire: nothing may even be on its way.
  const wrong = rules.filter((rule) => query(rule.query).data.result.length > 0).map((rule) => rule.name);
  assert.deepEqual(wrong, [], "a healthy server raises no alarm");
  await Promise.all([ada.close(), bob.close()]);
});
