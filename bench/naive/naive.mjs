// The refresh loop as one writes it in an afternoon: select what is due, POST each refresh token, write the answer back by id.
//
//	node naive.mjs IN-FLIGHT SECONDS TOKEN-URL CA-FILE CLIENT-ID CLIENT-SECRET PG-URL
//
// No lease, no fence, no journal, nothing sealed. Prints one JSON line.
import fs from "node:fs";
import pg from "pg";
import { Agent, request } from "undici";

const [parallel, seconds, url, caFile, id, secret, database] = process.argv.slice(2);
const width = Number(parallel);
const agent = new Agent({ connections: width, connect: { ca: fs.readFileSync(caFile) } });
const pool = new pg.Pool({ connectionString: database, max: Math.min(width, 10) });
const headers = {
	"content-type": "application/x-www-form-urlencoded",
	authorization: "Basic " + Buffer.from(`${id}:${secret}`).toString("base64"),
};

async function refresh(row) {
	const body = new URLSearchParams({ grant_type: "refresh_token", refresh_token: row.refresh_token }).toString();
	const answer = await request(url, { method: "POST", headers, body, dispatcher: agent });
	const t = await answer.body.json();
	if (answer.statusCode !== 200)
		throw new Error(`${answer.statusCode} ${JSON.stringify(t)}`);
	await pool.query("UPDATE naive_token SET access_token = $2, refresh_token = $3, due_at = now() + $4 * interval '1 second' WHERE id = $1",
		[row.id, t.access_token, t.refresh_token ?? row.refresh_token, t.expires_in]);
}

const began = process.hrtime.bigint();
const cpu = process.cpuUsage();
const elapsed = () => Number(process.hrtime.bigint() - began) / 1e9;
let n = 0;

// All workers take from one page; the next one is loaded when everything of it is done, so that no row is refreshed twice.
async function page(found) {
	let at = 0;
	async function worker() {
		while (at < found.length && elapsed() < Number(seconds)) {
			await refresh(found[at++]);
			n++;
		}
	}
	await Promise.all(Array.from({ length: width }, worker));
}
async function load() {
	const found = (await pool.query("SELECT id, refresh_token FROM naive_token WHERE due_at <= now() ORDER BY due_at LIMIT 1000")).rows;
	if (found.length === 0)
		throw new Error("nothing is due any more: more rows are needed");
	return found;
}

while (elapsed() < Number(seconds))
	await page(await load());
const took = elapsed();
const used = process.cpuUsage(cpu);
console.log(JSON.stringify({ n, seconds: took, per_s: n / took, cpu_us: (used.user + used.system) / n }));
await pool.end();
await agent.close();
